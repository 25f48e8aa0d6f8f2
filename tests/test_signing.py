"""`rlaif export --key` and `rlaif verify DIR --key`: what holds here holds for the public tools."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner

from rlaif_assets.cli import app
from rlaif_assets.evaluation.export import CONTENT_HASH, STATEMENT, verify_export
from rlaif_assets.evaluation.ml_bom import snapshot_uri
from rlaif_assets.evaluation.signing import SIGNATURE, signature_problems
from rlaif_assets.store.fingerprint import combine_hashes, folder_fingerprint
from rlaif_assets.store.warehouse import snapshot_id
from tests.homes import Home

WEIGHTS = "model.safetensors"
pytest.importorskip("model_signing", reason="the extra `sign` is not installed")


def write_pair(
    folder: Path, name: str, key: PrivateKeyTypes, protection: KeySerializationEncryption | None = None
) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs `own` and `other` (.pem, .pub) and keys that cannot sign."""
    folder = tmp_path_factory.mktemp("keys")
    write_pair(folder, "own", ec.generate_private_key(ec.SECP256R1()))
    write_pair(folder, "other", ec.generate_private_key(ec.SECP256R1()))
    write_pair(folder, "protected", ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"word"))
    write_pair(folder, "rsa", rsa.generate_private_key(65537, 2048))
    write_pair(folder, "bitcoin", ec.generate_private_key(ec.SECP256K1()))
    return folder


@pytest.fixture(scope="module")
def original(home: Home, keys: Path) -> Path:
    folder = keys / "export"
    words = ["export", "ppo_policy", str(folder), "--key", str(keys / "own.pem"), "--home", str(home.folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and SIGNATURE in done.output
    return folder


@pytest.fixture
def signed(original: Path, tmp_path: Path) -> Path:
    """A copy elsewhere, to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def ours(folder: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", str(folder), *words])
    return done.exit_code, done.output


def public_tool(folder: Path, key: Path) -> subprocess.CompletedProcess[str]:
    words = ["verify", "key", str(folder), "--signature", str(folder / SIGNATURE), "--public_key", str(key)]
    return subprocess.run([sys.executable, "-m", "model_signing", *words], capture_output=True, text=True, check=False)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_it_holds_here_and_for_the_public_tool_until_a_byte_changes(signed: Path, keys: Path) -> None:
    code, told = ours(signed, "--key", str(keys / "own.pub"))
    assert code == 0 and "0 problems" in told and f"{SIGNATURE} was made with the key of" in told
    done = public_tool(signed, keys / "own.pub")
    assert done.returncode == 0, done.stderr
    flip_a_byte(signed / WEIGHTS)
    code, told = ours(signed, "--key", str(keys / "own.pub"))
    assert code == 1 and f"{WEIGHTS} has changed" in told and f"Hash mismatch for '{WEIGHTS}'" in told
    assert "was made with" not in told and "Digest" not in told
    done = public_tool(signed, keys / "own.pub")
    assert done.returncode == 1 and WEIGHTS in done.stderr


def test_without_a_key_the_files_are_checked_and_that_the_signature_was_not_is_told(signed: Path, keys: Path) -> None:
    code, told = ours(signed)
    assert code == 0 and "0 problems" in told and f"{SIGNATURE} was not checked" in told and "--key" in told
    assert SIGNATURE not in {one["name"] for one in json.loads((signed / STATEMENT).read_text())["subject"]}
    code, told = ours(signed, "--json")
    assert json.loads(told) == {"asked": str(signed), "problems": [], "signed": True, "signature_checked": False}
    code, told = ours(signed, "--json", "--key", str(keys / "own.pub"))
    assert json.loads(told)["signature_checked"] is True


def test_another_key_is_refused_by_both(signed: Path, keys: Path) -> None:
    code, told = ours(signed, "--key", str(keys / "other.pub"))
    assert code == 1 and "1 problems" in told and "Key mismatch" in told
    assert public_tool(signed, keys / "other.pub").returncode == 1


def test_a_bundle_that_names_the_key_but_was_not_made_with_it_is_refused(signed: Path, keys: Path) -> None:
    from model_signing import signing

    named = json.loads((signed / SIGNATURE).read_text())["verificationMaterial"]
    signing.Config().use_elliptic_key_signer(private_key=keys / "other.pem").sign(signed, signed / SIGNATURE)
    bundle = json.loads((signed / SIGNATURE).read_text()) | {"verificationMaterial": named}
    (signed / SIGNATURE).write_text(json.dumps(bundle))
    (problem,) = signature_problems(signed, keys / "own.pub")
    assert problem == f"{SIGNATURE} was not made with the key of {keys / 'own.pub'}"


def test_a_statement_that_was_rewritten_with_the_files_deceives_only_who_gives_no_key(signed: Path, keys: Path) -> None:
    flip_a_byte(signed / WEIGHTS)
    told = json.loads((signed / STATEMENT).read_text())
    for one in told["subject"]:
        one["digest"] = {"sha256": hashlib.sha256((signed / one["name"]).read_bytes()).hexdigest()}
    (signed / STATEMENT).write_text(json.dumps(told))
    assert [one.partition(" of ppo_policy")[0] for one in verify_export(signed)] == ["the model files are not those"]
    (own,) = told["predicate"]["runDetails"]["byproducts"]
    forged = combine_hashes(own["annotations"]["table_hashes"], folder_fingerprint(signed))
    own |= {"digest": {CONTENT_HASH: forged}}
    (signed / STATEMENT).write_text(json.dumps(told))
    assert verify_export(signed) == [f"{STATEMENT}: the policy's id does not follow from its key and content hash"]
    own["uri"] = snapshot_uri(snapshot_id(own["annotations"]["key"], forged))
    (signed / STATEMENT).write_text(json.dumps(told))
    assert verify_export(signed) == []
    (problem,) = signature_problems(signed, keys / "own.pub")
    assert WEIGHTS in problem and STATEMENT in problem


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / SIGNATURE).unlink(), f"{SIGNATURE} is missing: the folder is not signed"),
        (lambda folder: (folder / SIGNATURE).write_text("{}"), f"{SIGNATURE} does not hold"),
        (lambda folder: (folder / SIGNATURE).write_bytes(b"\xff"), f"{SIGNATURE} does not hold"),
        (lambda folder: (folder / "more.json").write_text("1"), "Extra files"),
        (lambda folder: (folder / "config.json").unlink(), "Missing files"),
    ],
)
def test_what_the_signature_does_not_cover_is_named(
    signed: Path, keys: Path, damage: Callable[[Path], None], named: str
) -> None:
    damage(signed)
    code, told = ours(signed, "--key", str(keys / "own.pub"))
    assert code == 1 and named in told


@pytest.mark.parametrize("key", ["none.pem", "own.pub", "protected.pem", "rsa.pem", "bitcoin.pem", "."])
def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(
    home: Home, keys: Path, tmp_path: Path, key: str
) -> None:
    words = ["export", "ppo_policy", str(tmp_path / "new"), "--key", str(keys / key), "--home", str(home.folder)]
    done = CliRunner().invoke(app, words)
    told = "cannot be read" if key in ("none.pem", ".") else "that has no password"
    assert done.exit_code == 1 and told in done.output and "not foreseen" not in done.output
    assert not (tmp_path / "new").exists()


def test_a_key_that_cannot_verify_is_an_error(signed: Path, keys: Path) -> None:
    for key, named in (
        ("own.pem", "cannot verify"),
        ("rsa.pub", "cannot verify"),
        ("none.pub", "cannot be read"),
    ):
        code, told = ours(signed, "--key", str(keys / key))
        assert code == 1 and named in told and "not foreseen" not in told
    (signed / STATEMENT).unlink()
    for words in ([], ["--key", str(keys / "own.pub")]):
        code, told = ours(signed, *words)
        assert code == 2 and f"is an export without its {STATEMENT}" in told
    code, told = ours(Path("ppo_policy"), "--key", str(keys / "own.pub"))
    assert code == 2 and "is no export" in told


def test_an_in_toto_reader_takes_the_statement(signed: Path) -> None:
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    messages: Any = import_module("in_toto_attestation.v1.statement_pb2")
    predicates: Any = import_module("in_toto_attestation.predicates.provenance.v1.provenance_pb2")
    told = json.loads((signed / STATEMENT).read_text())
    read = Statement.copy_from_pb(ParseDict(told, messages.Statement()))
    read.validate()
    assert {one.name: dict(one.digest) for one in read.pb.subject} == {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in signed.iterdir()
        if path.name not in (STATEMENT, SIGNATURE)
    }
    provenance = ParseDict(told["predicate"], predicates.Provenance())
    for one in provenance.build_definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(one).validate()
    assert provenance.run_details.metadata.finished_on.seconds > 0
    assert told["predicate"]["runDetails"]["metadata"]["finishedOn"].endswith("Z")
