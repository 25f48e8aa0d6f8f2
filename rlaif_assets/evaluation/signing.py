"""The signature of an export, by OpenSSF model-signing with an elliptic curve key.

It is a Sigstore bundle that names every other file of the folder by its SHA-256; `model_signing verify key` reads the
same. The library comes with the extra `sign` and is imported only where a key is given.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_signing import signing, verifying

SIGNATURE = "model.sig"
# In the library's message about a changed file: two lists of bytes, quoted in one of two ways.
RAW_DIGESTS = re.compile(r": Expected \\?'Digest\(.*?\)\\?', Actual \\?'Digest\(.*?\)\\?'(?=['\"])")


class SigningError(ValueError):
    """A key that cannot be used, or the library is not installed."""


def load_signer(private_key: Path) -> "signing.Config":
    """Signs everything in a folder but its signature. Raises SigningError for a key that cannot be used."""
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from model_signing import hashing, signing

    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except OSError as error:
        raise SigningError(f"{private_key} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"{private_key} cannot sign: give a PEM file with a private key of the curve P-256, P-384 or P-521 that "
            "has no password"
        ) from error
    return config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))


def signature_problems(folder: Path, public_key: Path) -> list[str]:
    """Why the folder is not as the key's holder signed it: unsigned, signed by another key, files changed, missing or
    added. Raises SigningError for a key that cannot be used."""
    verifier = _load_verifier(public_key)
    path = folder / SIGNATURE
    if not path.is_file():
        return [f"{SIGNATURE} is missing: the folder is not signed"]
    from cryptography.exceptions import InvalidSignature

    try:
        verifier.verify(folder, path)
    except InvalidSignature:
        return [f"{SIGNATURE} was not made with the key of {public_key}"]
    except Exception as error:  # anyone may have written this file, so the library may stumble over it anywhere
        told = RAW_DIGESTS.sub("", str(error)).replace("\\'", "'").strip() or type(error).__name__
        return [f"{SIGNATURE} does not hold with {public_key}: {told}"]
    return []


def _load_verifier(public_key: Path) -> "verifying.Config":
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from model_signing import verifying

    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except OSError as error:
        raise SigningError(f"{public_key} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"{public_key} cannot verify: give a PEM file with a public key of the curve P-256, P-384 or P-521"
        ) from error


def _require_library() -> None:
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        raise SigningError(
            f"signatures need model-signing and pyopenssl ({error}): install rlaif-assets with its extra `sign`"
        ) from error
