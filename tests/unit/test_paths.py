"""Any name becomes a safe path, and no two names the same one."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream_app.sinks.paths import POD_SUFFIX, SERVICE_SUFFIX, decoded, encoded, file_path

ODD = ["", "_", ".", "..", "/", "a/b", "../../etc/passwd", ".stream-app", "con", "CON.x", "a" * 5_000, "ü" * 300]
ODD += ["a\0b", "a\nb", "%", "%2E", "~", "-rf", "a.service", "A.SERVICE", "a.", "a b", "C:\\x", "_" * 3, "%5F"]
ODD += ["a" * 200 + "..", "a" * 199 + ".b", "a" * 200 + "/", "a" * 200 + "con"]
names = st.sampled_from(ODD) | st.text(max_size=40) | st.text("._-%/~coneservice", max_size=12)


@given(names)
def test_a_name_can_be_read_back(name: str) -> None:
    assert decoded(encoded(name)) == name


@given(names, names, names, names)
@example("a", "b.service", "a", "b")
def test_no_two_services_share_a_file(namespace: str, service: str, namespace_2: str, service_2: str) -> None:
    """Neither with one another, nor does one's pod file with another's service file."""
    one = {file_path(namespace, service, suffix) for suffix in (POD_SUFFIX, SERVICE_SUFFIX)}
    two = {file_path(namespace_2, service_2, suffix) for suffix in (POD_SUFFIX, SERVICE_SUFFIX)}
    assert len(one) == 2
    assert one == two if (namespace, service) == (namespace_2, service_2) else not one & two


@given(names, names)
def test_a_path_stays_inside_and_is_a_name_everywhere(namespace: str, service: str) -> None:
    path = file_path(namespace, service, SERVICE_SUFFIX)
    assert path.isascii()
    assert path.isprintable()
    for part in PurePosixPath(path).parts:
        assert 0 < len(part) <= 212
        assert part[0] not in ".-~/"
        assert part[-1] not in ". "
        assert not PureWindowsPath(part).is_reserved()
        assert not set(part) & set('\\:*?"<>| ')
    assert Path("/storage", path).resolve().is_relative_to("/storage")
    assert PurePosixPath(path).parts[0] != ".stream-app"


@pytest.mark.parametrize("name", ["checkout", "checkout-v2", "Checkout_2.prod", "a" * 63])
def test_kubernetes_names_are_unchanged(name: str) -> None:
    assert encoded(name) == name


def test_namespace_without_a_name() -> None:
    assert file_path("", "api", POD_SUFFIX) == "_/api.csv"
    assert file_path("_", "api", POD_SUFFIX) == "%5F/api.csv"


@pytest.mark.parametrize("name", ODD)
def test_file_systems_take_odd_names(name: str, tmp_path: Path) -> None:
    if len(name) > 3_000:
        return
    path = tmp_path / file_path(name, name, SERVICE_SUFFIX)
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert path.read_text() == "x"
