"""Crops of the released code, reproduced; also from recordings of other sizes than the shipped ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lumina_jax.modalities.decoding.buckets import crop_sizes
from lumina_jax.parity.crops import is_crops, run

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_every_recorded_crop_is_reproduced_from_either_file(ending):
    results = list(run(GOLDEN / f"crops.{ending}"))
    assert len(results) == 16
    assert all(result.passed and result.difference == 0 and not result.note for result in results), results


def test_files_are_recognised_by_their_content():
    assert is_crops(GOLDEN / "crops.json")
    assert is_crops(GOLDEN / "crops.safetensors")
    assert not is_crops(GOLDEN / "transport_paths.safetensors")
    assert not is_crops(GOLDEN / "nothing.json")


def test_one_wrong_number_or_pixel_fails_exactly_its_case(tmp_path):
    recorded = json.loads((GOLDEN / "crops.json").read_text())
    recorded["crop_size_list"]["512"][3][0] += 16
    recorded["var_crops"][2]["trace"][-1][1][1] += 1
    (tmp_path / "other.json").write_text(json.dumps(recorded))
    pictures = load_file(GOLDEN / "crops.safetensors")
    pictures["out/cca_1"] = pictures["out/cca_1"] ^ np.uint8(1)
    save_file(pictures, tmp_path / "other.safetensors")
    failed = [result.case for result in run(tmp_path / "other.json") if not result.passed]
    assert failed == ["sizes 512", "crop 1 of top 1", "centre 1"]


def test_integers_alone_are_compared_when_no_pixels_were_recorded(tmp_path):
    shutil.copy(GOLDEN / "crops.json", tmp_path)
    results = list(run(tmp_path / "crops.json"))
    assert len(results) == 13
    assert all(result.passed for result in results)
    assert "no pixels" in results[-1].note


def test_a_recording_of_another_image_size_and_crop_is_followed(tmp_path):
    """Worked out by hand: (128 // 16)^2 = 64 patches; a 200 x 200 picture keeps most as a square of 8 x 8."""
    crop = {
        "i": 7,
        "size": [200, 200],
        "smooth": False,
        "ax": 1,
        "ay": 2,
        "seed": 5,
        "top_k": 1,
        "out_size": [128, 128],
    }
    crop["trace"] = [["resize", [128, 128], "3"], ["crop", [0, 0, 128, 128]]]
    recorded = {"crop_size_list": {"128": crop_sizes(64, 16), "64": crop_sizes(16, 16)}, "var_crops": [crop]}
    (tmp_path / "small.json").write_text(json.dumps(recorded))
    results = {result.case: result.passed for result in run(tmp_path / "small.json")}
    assert results == {"sizes 128": True, "sizes 64": True, "crop 7 of top 1": True}


def test_a_missing_json_is_named(tmp_path):
    shutil.copy(GOLDEN / "crops.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"crops\.json"):
        list(run(tmp_path / "crops.safetensors"))
