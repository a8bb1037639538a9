"""What an ML service imports: pods' windows out of Kafka, with their histories, in the shapes that models take.

Needs no more than podstream's own dependencies: neither Faust nor what writes files is loaded.
"""

from stream_app.consumer.batch import Batch
from stream_app.consumer.consumer import Malformed, PodConsumer
from stream_app.consumer.forms import Matrix
from stream_app.consumer.window import Window

__all__ = ["Batch", "Malformed", "Matrix", "PodConsumer", "Window"]
