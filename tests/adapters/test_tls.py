"""What a server may show, and whom its clients believe."""

from __future__ import annotations

import logging
import ssl
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapters import tls
from domain.errors import InvalidInput
from tests.certificates import Authority

DAY_S = 86_400


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[Path, Path]:
    return authority.sign("rushes.test")


def test_what_can_t_be_shown_is_refused_by_its_setting_and_its_file(
    authority: Authority, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = pair
    _, another = authority.sign("another.test")
    junk = tmp_path / "junk"
    junk.write_text("-----BEGIN NOTHING-----")
    nowhere = tmp_path / "nowhere"
    locked = tmp_path / "locked.key"
    locked.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        "MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhHzYLHvhAYXQICCAAw\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    for given, field, said in (
        ((nowhere, key, None), "RUSHES_TLS_CERTIFICATE", "can't be read: No such file"),
        ((certificate, nowhere, None), "RUSHES_TLS_KEY", "can't be read: No such file"),
        ((certificate, tmp_path, None), "RUSHES_TLS_KEY", "can't be read: Is a directory"),
        ((junk, key, None), "RUSHES_TLS_CERTIFICATE", f"{junk} can't be used"),
        ((key, key, None), "RUSHES_TLS_CERTIFICATE", f"{key} can't be used"),
        ((certificate, junk, None), "RUSHES_TLS_KEY", f"{junk} can't be used"),
        ((certificate, another, None), "RUSHES_TLS_KEY", f"{another} is not the key of"),
        ((certificate, locked, None), "RUSHES_TLS_KEY", "it has a passphrase"),
        ((certificate, key, junk), "RUSHES_TLS_CLIENT_CA", f"{junk} can't be used"),
    ):
        with pytest.raises(InvalidInput) as refused:
            tls.identity(*given, now=time.time())
        assert refused.value.field == field
        assert said in refused.value.message


@pytest.mark.parametrize(("left_s", "said"), [(-60, "HAS EXPIRED"), (13 * DAY_S, "expires soon")])
def test_a_certificate_near_or_past_its_end_is_served_with_a_warning(
    authority: Authority, caplog: pytest.LogCaptureFixture, left_s: float, said: str
) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=left_s)
    shown = tls.identity(*authority.sign("late.test", not_after=ends), None, now=time.time())
    assert said in caplog.text
    tls.handshake(shown.context, tls.trusting(shown.own))
    with pytest.raises(ssl.SSLCertVerificationError) if left_s < 0 else nullcontext():
        tls.handshake(shown.context, tls.trusting_authority(authority.file), "late.test")


def test_a_good_certificate_is_taken_without_a_word(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    ends = datetime.now(UTC) + timedelta(days=15)
    certificate, key = authority.sign("good.test", not_after=ends)
    shown = tls.identity(certificate, key, authority.file, now=time.time())
    assert not caplog.records
    assert tls.alone(certificate).split() == shown.own.split()
    key.chmod(0o604)
    with caplog.at_level(logging.WARNING):
        tls.identity(certificate, key, None, now=time.time())
    assert f"{key} can be read by everybody" in caplog.text


def test_who_trusts_one_certificate_trusts_no_other_of_its_authority(
    authority: Authority, pair: tuple[Path, Path]
) -> None:
    ours = tls.identity(*pair, None, now=time.time())
    theirs = tls.identity(*authority.sign("impostor.test"), None, now=time.time())
    tls.handshake(ours.context, tls.trusting(ours.own))
    with pytest.raises(ssl.SSLCertVerificationError):
        tls.handshake(theirs.context, tls.trusting(ours.own))


def test_who_trusts_an_authority_asks_for_the_name(
    authority: Authority, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shown = tls.identity(*pair, None, now=time.time())
    trust = tls.trusting_authority(authority.file)
    tls.handshake(shown.context, trust, "rushes.test")
    for name, believed in (
        ("elsewhere.test", trust),
        ("rushes.test", tls.trusting_authority(None)),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            tls.handshake(shown.context, believed, name)
    with pytest.raises(InvalidInput, match="can't be read"):
        tls.trusting_authority(tmp_path / "nowhere")


def test_nothing_older_than_tls_1_2_is_spoken(pair: tuple[Path, Path]) -> None:
    shown = tls.identity(*pair, None, now=time.time())
    for version, taken in (
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ):
        client = tls.trusting(shown.own)
        client.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1") if not taken else nullcontext():
            client.minimum_version = client.maximum_version = version
        with nullcontext() if taken else pytest.raises(ssl.SSLError):
            tls.handshake(shown.context, client)


def test_a_file_that_is_replaced_written_to_or_gone_is_another(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    file, renewed = tmp_path / "server.pem", tmp_path / "renewed.pem"
    seen = [tls.stamp(file, None)]
    for change in (
        lambda: file.write_bytes(pair[0].read_bytes()),
        lambda: renewed.write_bytes(file.read_bytes()) and renewed.rename(file),
        lambda: file.write_bytes(file.read_bytes() + b"\n"),
    ):
        change()
        assert tls.stamp(file, None) == tls.stamp(file, None)
        assert tls.stamp(file, None) not in seen
        seen.append(tls.stamp(file, None))
    file.unlink()
    assert tls.stamp(file, None) == seen[0]
