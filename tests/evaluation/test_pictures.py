from io import BytesIO

from PIL import Image

from rlaif_assets.evaluation.pictures import (
    curves_picture,
    lengths_picture,
    rates_picture,
    reliability_picture,
    score_by_kl_picture,
)
from rlaif_assets.evaluation.rates import policy_rates
from tests.evaluation.rows import answer


def size(png: bytes) -> tuple[int, int]:
    return Image.open(BytesIO(png)).size


def test_pictures_are_png_also_where_values_are_missing():
    rates = policy_rates([answer("base", "p", "engaged"), answer("ppo", "q", None, kind="unknown")], "test", 20)
    assert size(rates_picture(rates)) == (990, 440)
    assert size(rates_picture([])) == (990, 440)
    assert size(reliability_picture({"ai": [[0.7, 0.6, 3]]})) == (495, 440)
    assert size(curves_picture({"kl": [0.0, 0.1], "score": [1.0, float("nan")]})) == (660, 286)
    assert size(curves_picture({f"curve {i}": [0.0, 0.1] for i in range(6)})) == (1320, 572)
    assert size(lengths_picture({"base": [3, 5, 9], "ppo": []})) == (990, 286)
    assert size(lengths_picture({})) == (990, 286)
    assert size(score_by_kl_picture([-0.1, 0.1, 0.4], {"score": [0.0, 1.0, float("nan")]})) == (495, 440)


def test_a_picture_changes_with_its_numbers():
    one, other = (policy_rates([answer("ppo", "p", verdict)], "test", 20) for verdict in ("engaged", "harmful"))
    assert rates_picture(one) == rates_picture(one)
    assert rates_picture(one) != rates_picture(other)
    assert lengths_picture({"ppo": [3, 5, 9]}) != lengths_picture({"ppo": [3, 5, 12]})
