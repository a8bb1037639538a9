import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/**
 * One JSON message a sample in, the mean of each pod's metrics a minute out, on Kafka Streams as it is fastest: the
 * processor API on an in-memory store, so that no topic lies between; a window is emitted when its partition's event
 * time has passed it. Arguments: servers, topic, sink, group, samples. Prints "first", and "done" when all samples
 * are counted, and results and offsets committed; then it waits to be ended.
 */
public final class PerMinute {
  private static final long MINUTE_MS = 60_000;
  private static final String STORE = "means";
  private static final JsonFactory JSON = new JsonFactory();
  private static final AtomicBoolean BEGUN = new AtomicBoolean();
  private static final LongAdder SEEN = new LongAdder();

  private record Sample(String metric, double value) {}

  private record Sum(double total, long count) {
    Sum plus(double value) {
      return new Sum(total + value, count + 1);
    }
  }

  public static void main(String[] arguments) throws InterruptedException {
    long samples = Long.parseLong(arguments[4]);
    StreamsBuilder builder = new StreamsBuilder();
    builder.addStateStore(
        Stores.windowStoreBuilder(
                Stores.inMemoryWindowStore(STORE, Duration.ofMinutes(5), Duration.ofMinutes(1), false),
                Serdes.String(),
                serde(PerMinute::sumBytes, PerMinute::sum))
            .withCachingEnabled());
    builder.stream(arguments[1], Consumed.with(Serdes.String(), serde(sample -> null, PerMinute::sample)))
        .process(Means::new, STORE)
        .to(arguments[2], Produced.with(Serdes.String(), Serdes.ByteArray()));

    KafkaStreams streams = new KafkaStreams(builder.build(), settings(arguments[0], arguments[3]));
    streams.setUncaughtExceptionHandler(
        error -> {
          error.printStackTrace();
          Runtime.getRuntime().halt(1);
          return null;
        });
    streams.start();
    while (SEEN.sum() < samples) {
      Thread.sleep(10);
    }
    streams.close();
    System.out.println("done");
    new CountDownLatch(1).await();
  }

  private static Properties settings(String servers, String group) {
    Properties settings = new Properties();
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, group);
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, "state");
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
    // Room for a few windows: a scan for one of them goes through all that is cached, and without a cache every
    // sample would be a message of the changelog.
    settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 4L << 20);
    settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 5000);
    settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 5000L);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 5000);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 4 << 20);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.FETCH_MIN_BYTES_CONFIG), 1 << 16);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.FETCH_MAX_WAIT_MS_CONFIG), 50);
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 50);
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 1 << 18);
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 128L << 20);
    return settings;
  }

  private interface Reader<T> {
    T read(byte[] bytes);
  }

  private interface Writer<T> {
    byte[] write(T value);
  }

  private static <T> Serde<T> serde(Writer<T> writer, Reader<T> reader) {
    Serializer<T> serializer = (topic, value) -> value == null ? null : writer.write(value);
    Deserializer<T> deserializer = (topic, bytes) -> bytes == null ? null : reader.read(bytes);
    return Serdes.serdeFrom(serializer, deserializer);
  }

  private static byte[] sumBytes(Sum sum) {
    return ByteBuffer.allocate(16).putDouble(sum.total()).putLong(sum.count()).array();
  }

  private static Sum sum(byte[] bytes) {
    ByteBuffer buffer = ByteBuffer.wrap(bytes);
    return new Sum(buffer.getDouble(), buffer.getLong());
  }

  /** Reads metric and value only: the pod is the message's key. */
  private static Sample sample(byte[] bytes) {
    if (!BEGUN.get() && BEGUN.compareAndSet(false, true)) {
      System.out.println("first");
    }
    String metric = "";
    double value = 0;
    try (JsonParser parser = JSON.createParser(bytes)) {
      parser.nextToken();
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String field = parser.currentName();
        if (parser.nextToken() == JsonToken.START_OBJECT) {
          parser.skipChildren();
        } else if (field.equals("name")) {
          metric = parser.getText();
        } else if (field.equals("value")) {
          value = Double.parseDouble(parser.getText());
        }
      }
    } catch (IOException error) {
      throw new IllegalStateException(error);
    }
    return new Sample(metric, value);
  }

  private static final class Means implements Processor<String, Sample, String, byte[]> {
    private final Map<String, Map<String, String>> keys = new HashMap<>();
    private ProcessorContext<String, byte[]> context;
    private WindowStore<String, Sum> store;
    private long window = Long.MIN_VALUE;

    @Override
    public void init(ProcessorContext<String, byte[]> given) {
      context = given;
      store = given.getStateStore(STORE);
    }

    @Override
    public void process(Record<String, Sample> record) {
      SEEN.increment();
      long start = record.timestamp() - record.timestamp() % MINUTE_MS;
      if (start > window) {
        if (window != Long.MIN_VALUE) {
          emit(window);
        }
        window = start;
      } else if (start < window) {
        return;
      }
      // A key is put together once for each pod and metric.
      String key =
          keys.computeIfAbsent(record.key(), pod -> new HashMap<>())
              .computeIfAbsent(record.value().metric(), metric -> record.key() + "|" + metric);
      Sum sum = store.fetch(key, start);
      store.put(key, (sum == null ? new Sum(0, 0) : sum).plus(record.value().value()), start);
    }

    private void emit(long start) {
      try (KeyValueIterator<Windowed<String>, Sum> found = store.fetchAll(start, start)) {
        while (found.hasNext()) {
          var entry = found.next();
          String key = entry.key.key();
          int bar = key.indexOf('|');
          String pod = key.substring(0, bar);
          String json =
              "{\"pod\":\"" + pod + "\",\"metric\":\"" + key.substring(bar + 1) + "\",\"window\":" + start
                  + ",\"mean\":" + entry.value.total() / entry.value.count() + "}";
          context.forward(
              new Record<>(pod, json.getBytes(StandardCharsets.UTF_8), start + MINUTE_MS - 1));
        }
      }
    }
  }
}
