import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from clipguide import images
from clipguide.errors import ClipguideError, UsageError

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def rgb_of(picture):
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_transparent_is_laid_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, 1] = 200, 100, 0, 255
    rgba[0, 2] = 0, 0, 0, 51
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = [[255, 255, 255], [200, 100, 0], [204, 204, 204]]
    assert rgb_of(images.load(tmp_path / "a.png"))[0].tolist() == expected


def test_transparent_palette(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    assert rgb_of(images.load(tmp_path / "a.png"))[0].tolist() == [[255] * 3, [40, 50, 60]]


def test_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    assert (rgb_of(images.load(tmp_path / "a.png"))[..., 0] == np.rot90(RAMP, -1)).all()


def test_16_bit_grey(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert (rgb_of(images.load(tmp_path / "a.png"))[..., 1] == RAMP).all()


def test_floating_point_grey(tmp_path):
    values = (RAMP / 255).astype(np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert (rgb_of(images.load(tmp_path / "a.tiff"))[..., 2] == RAMP).all()


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tiff")
    assert rgb_of(images.load(tmp_path / "a.tiff"))[0, 0].tolist() == [255, 0, 0]


def test_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as moving:
        moving.seek(1)
        assert rgb_of(images.load(moving))[0, 0].tolist() == [255, 0, 0]
    assert rgb_of(images.load(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "HSV", "YCbCr", "LAB", "I"])
def test_every_mode_becomes_rgb(mode):
    assert images.load(Image.new("RGB", (5, 4)).convert(mode)).mode == "RGB"


def test_unreadable(tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "text.png").write_text("no image")
    for name in ("missing.png", "cut.png", "text.png", "."):
        with pytest.raises(UsageError):
            images.load(tmp_path / name)


def test_tensor_and_back():
    array = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    image_B3HW = images.to_tensor([Image.fromarray(a) for a in array])
    assert image_B3HW.shape == (2, 3, 5, 7) and image_B3HW.dtype == torch.float32
    assert_close(image_B3HW, torch.from_numpy(array).permute(0, 3, 1, 2) / 255, rtol=0, atol=0)
    assert (np.stack(images.to_pil(image_B3HW)) == array).all()


def test_rounding_is_to_even_and_clamped():
    value_3HW = torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 2.0]).expand(3, 1, 5)
    expected = [0, *torch.tensor([0.5, 1.5, 2.5]).round().int().tolist(), 255]
    assert np.asarray(images.to_pil(value_3HW[None])[0])[0, :, 0].tolist() == expected


def test_not_a_number():
    with pytest.raises(ClipguideError, match="not numbers"):
        images.to_pil(torch.full((1, 3, 2, 2), float("nan")))


def test_contact_sheet():
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    sheet = images.contact_sheet(pictures, labels=["red", "a very long label", ""], columns=2)
    step_x, step_y = 32 + images.GAP, 32 + images.LABEL_HEIGHT + images.GAP
    assert sheet.size == (2 * step_x + images.GAP, 2 * step_y + images.GAP)
    corners = [(0, 0), (step_x, 0), (0, step_y)]
    colours = [sheet.getpixel((x + images.GAP, y + images.GAP)) for x, y in corners]
    assert colours == [picture.getpixel((0, 0)) for picture in pictures]
    label = np.asarray(sheet)[images.GAP + 32 :][: images.LABEL_HEIGHT, : images.GAP + 32]
    assert label.min() < 128  # something is written under the first
