"""Images, their levels, and the batches of Algorithm 2."""

import itertools
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from dkdm_lab.data import DATASETS, DataSet, content_hash, load_images, load_labels, mix, to_model, to_uint8
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.sources import NoisedImages
from dkdm_lab.system.paths import cache_dir

# -- images -------------------------------------------------------------------------------------------


def test_digits_are_the_real_ones_of_scikit_learn():
    images = load_images("digits")
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert len(images.unique()) == 17  # grey levels, spread over all of 0..255
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert len(images.flatten(1).unique(dim=0)) == 1797


def test_every_grey_level_survives_the_way_to_the_model_and_back():
    """Exactly, but that ADM cuts instead of rounding: where float32 falls short of a level, one is lost."""
    levels = torch.arange(256, dtype=torch.uint8)
    lost = levels.int() - to_uint8(to_model(levels)).int()
    assert set(lost.tolist()) <= {0, 1}
    assert torch.equal(to_uint8(levels.double() / 127.5 - 1 + 1e-6), levels)


def test_the_model_sees_minus_one_to_one():
    assert to_model(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_floats_are_quantised_as_adm_does():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.9999, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 63, 127, 254, 255, 255]  # scaled, clamped, cut: not rounded


def test_the_cache_is_the_folder_that_the_variable_names(cache, monkeypatch):
    assert cache_dir() == cache
    monkeypatch.delenv("DKDM_DATA_CACHE")
    assert cache_dir().name == "data_cache"


def colour_images(n, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture
def small_cifar10(monkeypatch):
    """CIFAR-10 as if it had ten images; returns them as ``[N, H, W, C]``."""
    images = colour_images(10)
    known = DataSet(
        (3, 32, 32), {"train": 10, "test": 10}, {"train": content_hash(nchw(images))}, "from here"
    )
    monkeypatch.setitem(DATASETS, "cifar10", known)
    return images


def nchw(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("key", ["x", "arr_0"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_is_read_from_an_npz(cache, small_cifar10, split, key):
    (cache / "cifar10").mkdir()
    np.savez(cache / "cifar10" / f"{split}.npz", **{key: small_cifar10})
    found = load_images("cifar10", split)
    assert found.is_contiguous()
    assert torch.equal(found, nchw(small_cifar10))
    assert torch.equal(load_images("cifar10", split, n=3), found[:3])


def test_cifar10_is_read_from_torchvisions_own_layout(cache, monkeypatch, small_cifar10):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # ours is smaller than the real one
    folder = cache / "cifar10" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for (file, _), part in zip(CIFAR10.train_list, np.split(small_cifar10, 5), strict=True):
        rows = part.transpose(0, 3, 1, 2).reshape(len(part), -1)
        (folder / file).write_bytes(pickle.dumps({"data": rows, "labels": [7] * len(part)}))
    names = pickle.dumps({"label_names": [str(k) for k in range(10)]})
    (folder / CIFAR10.meta["filename"]).write_bytes(names)
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    assert torch.equal(load_images("cifar10"), nchw(small_cifar10))
    assert load_labels("cifar10").tolist() == [7] * 10


def test_labels_are_read_from_an_npz(cache):
    (cache / "cifar10").mkdir()
    file = cache / "cifar10" / "test.npz"
    np.savez(file, x=np.zeros((3, 32, 32, 3), np.uint8), y=np.array([2, 0, 1], np.uint8))
    labels = load_labels("cifar10", "test")
    assert labels.tolist() == [2, 0, 1] and labels.dtype == torch.int64
    np.savez(file, x=np.zeros((3, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"test.npz: found arrays \['x'\], expected labels 'y' among them"):
        load_labels("cifar10", "test")


def test_fashion_is_padded_to_32(cache, monkeypatch):
    grey = np.full((10, 28, 28, 1), 9, dtype=np.uint8)
    monkeypatch.setitem(DATASETS, "fashion", DataSet((1, 32, 32), {"train": 10}, {}, ""))
    (cache / "fashion").mkdir()
    np.savez(cache / "fashion" / "train.npz", x=grey)
    found = load_images("fashion")
    assert found.shape == (10, 1, 32, 32)
    assert found[:, :, 2:-2, 2:-2].eq(9).all()
    assert int(found.sum()) == 10 * 28 * 28 * 9  # the rest is black


def test_celeba_is_cut_from_the_aligned_photographs_and_kept(cache, monkeypatch):
    monkeypatch.setitem(DATASETS, "celeba64", DataSet((3, 64, 64), {"train": 2}, {}, ""))
    folder = cache / "celeba64" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number, size in enumerate([(178, 218), (89, 109)]):  # the published size, and half of it
        picture = Image.new("RGB", size, (0, 0, 0))
        middle = size[1] // 2
        picture.paste((200, 100, 50), (0, middle - size[0] // 2, size[0], middle + size[0] // 2))
        picture.save(folder / f"00000{number}.jpg", quality=100)
    found = load_images("celeba64")
    assert found.shape == (2, 3, 64, 64)
    # The square in the middle fills what is cut: no black but at its seams.
    centre = found[:, :, 4:-4].float().mean((0, 2, 3))
    assert_close(centre, torch.tensor([200.0, 100.0, 50.0]), atol=3, rtol=0)
    assert (cache / "celeba64" / "train.npz").is_file()
    assert torch.equal(load_images("celeba64"), found)


def test_imagenet32_is_read_from_its_ten_batches_in_their_order(cache, monkeypatch):
    monkeypatch.setitem(DATASETS, "imagenet32", DataSet((3, 32, 32), {"train": 11}, {}, ""))
    (cache / "imagenet32").mkdir()
    images = colour_images(11)
    for number, image in enumerate(images, 1):  # 10 sorts before 2
        rows = image.transpose(2, 0, 1).reshape(1, -1)
        np.savez(cache / "imagenet32" / f"train_data_batch_{number}.npz", data=rows)
    assert torch.equal(load_images("imagenet32"), nchw(images))


@pytest.mark.parametrize("name, mode", [("cifar10", "RGB"), ("holidays", "RGB"), ("scans", "L")])
def test_a_folder_of_images_serves_any_preset(cache, name, mode):
    folder = cache / name / "train" / "nested"
    folder.mkdir(parents=True)
    images = colour_images(3)
    images = images if mode == "RGB" else images[..., :1]
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{number}.png")
    found = load_images(name)
    assert torch.equal(found, nchw(images))


def test_a_folder_without_images_is_refused(cache):
    (cache / "cifar10" / "train").mkdir(parents=True)
    (cache / "cifar10" / "train" / "notes.txt").write_text("none here", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train: found no images beside 1 \.txt, expected \.png"):
        load_images("cifar10")


@pytest.mark.parametrize("name, sizes", [("cifar10", [(89, 109)]), ("holidays", [(32, 32), (89, 109)])])
def test_images_of_another_size_are_refused(cache, name, sizes):
    (cache / name / "train").mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(cache / name / "train" / f"{number}.png")
    with pytest.raises(ValueError, match=rf"{len(sizes) - 1}.png: found an image of 109x89.*expected 32x32"):
        load_images(name)


def put(cache, name, image, **options):
    folder = cache / "holidays" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)


def test_sixteen_bits_are_scaled_not_clipped(cache):
    """Black, a half and white, in Pillow's two ways to hold them; 32768 / 65535 of 255 is 127.5."""
    for name, kind in (("a.png", np.uint16), ("b.tif", np.int32)):
        put(cache, name, Image.fromarray(np.array([[0, 32767, 65535]], kind)))
    with pytest.warns(UserWarning, match="read 2 grey images, converted 2 16-bit grey to 8 bits$"):
        found = load_images("holidays")
    assert found.tolist() == [[[[0, 127, 255]]]] * 2


def test_every_still_format_is_read(cache):
    for number, suffix in enumerate(("png", "bmp", "tif", "tiff", "ppm", "webp", "JPG")):
        put(cache, f"{number}.{suffix}", Image.new("RGB", (4, 4), (40 * number, 0, 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_images("holidays")
    assert_close(found[:, 0, 0, 0].float(), 40.0 * torch.arange(7), atol=3, rtol=0)


@pytest.mark.parametrize(
    "image, options, how",
    [
        (Image.new("P", (4, 4)), {}, "1 of a palette"),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 255)), {}, "1 with an opaque alpha channel"),
        (Image.new("L", (4, 4)), {}, "1 L to RGB"),
        (Image.new("1", (4, 4)), {}, "1 1 to RGB"),
        (Image.new("LA", (4, 4), (9, 255)), {}, "1 with an opaque alpha channel"),
        (Image.new("P", (4, 4)), {"transparency": 200}, "1 with an opaque alpha channel"),
        (Image.new("CMYK", (4, 4)), {"format": "JPEG"}, "1 CMYK to RGB"),
        (Image.new("LAB", (4, 4)), {"format": "TIFF"}, "1 LAB to RGB"),
    ],
)
def test_what_is_converted_is_said(image, options, how, cache):
    put(cache, "a.png", Image.new("RGB", (4, 4)))
    put(cache, "b.png", image, **options)
    with pytest.warns(UserWarning, match=f"holidays/train: read 2 RGB images, converted {how}$"):
        assert load_images("holidays").shape == (2, 3, 4, 4)


def test_colours_become_grey_where_the_first_is(cache):
    put(cache, "a.png", Image.new("L", (4, 4)))
    put(cache, "b.jpg", Image.new("CMYK", (4, 4)))
    with pytest.warns(UserWarning, match="read 2 grey images, converted 1 CMYK to L$"):
        assert load_images("holidays").shape == (2, 1, 4, 4)


def test_a_photograph_is_turned_as_its_camera_says(cache):
    picture = Image.new("RGB", (6, 4))
    picture.paste((255, 255, 255), (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the right of the picture is below
    put(cache, "a.png", picture, exif=exif)
    with pytest.warns(UserWarning, match="converted 1 turned as the camera says"):
        found = load_images("holidays")
    assert found.shape == (1, 3, 6, 4)
    assert found[0, :, :3].min() == 255 and found[0, :, 3:].max() == 0


def test_what_is_left_out_is_said(cache):
    for name in ("a.png", ".hidden.png"):
        put(cache, name, Image.new("RGB", (4, 4)))
    for name in ("notes.txt", "b.CR2", "c.CR2", "README"):
        (cache / "holidays" / "train" / name).write_text("", encoding="utf-8")
    left = "1 .txt, 1 hidden, 1 without a suffix, 2 .cr2"
    with pytest.warns(UserWarning, match="read 1 RGB images, left out ") as said:
        load_images("holidays")
    assert sorted(str(said[0].message).split("left out ")[1].split(", ")) == sorted(left.split(", "))


@pytest.mark.parametrize("white", [255, 1023, 65535])
def test_a_ppm_says_itself_what_is_white(white, cache):
    put(cache, "a.png", Image.new("RGB", (4, 4)))
    pixels = np.full(48, white, ">u1" if white == 255 else ">u2").tobytes()
    (cache / "holidays" / "train" / "b.ppm").write_bytes(b"P6 4 4 %d\n" % white + pixels)
    with warnings.catch_warnings(record=True) as said:
        assert load_images("holidays")[1].min() == 255
    assert ["16-bit colours to 8 bits" in str(one.message) for one in said] == [True] * (white != 255)


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda file: file.symlink_to("nowhere.png"), "1 links or devices without a file"),
        (os.mkfifo, "1 links or devices without a file"),
        (lambda file: file.symlink_to(file.parents[2]), "1 links to folders"),
    ],
)
def test_what_no_file_lies_behind_is_left_out_and_said(make, what, cache):
    put(cache, "a.png", Image.new("RGB", (4, 4)))
    make(cache / "holidays" / "train" / "b.png")
    with pytest.warns(UserWarning, match=f"read 1 RGB images, left out {what}$"):
        load_images("holidays")


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", "ICO"]
)
def test_a_format_under_another_ones_name_is_no_image(content, cache):
    """Least of all PostScript, which is a program."""
    if content == "ICO":
        put(cache, "a.png", Image.new("RGB", (16, 16)), format="ICO")
    else:
        put(cache, "a.png", Image.new("RGB", (4, 4)))
        (cache / "holidays" / "train" / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.png: cannot be read as an image \(cannot identify image file"):
        load_images("holidays")


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (4, 4), (9, 9, 9))]}


@pytest.mark.parametrize(
    "name, image, options, problem",
    [
        ("b.png", Image.new("RGBA", (4, 4), (255, 0, 0, 0)), {}, "found transparency"),
        ("b.png", Image.new("LA", (4, 4), (255, 9)), {}, "found transparency"),
        ("b.png", Image.new("P", (4, 4)), {"transparency": 0}, "found transparency"),
        ("b.png", Image.new("RGB", (4, 4)), {"transparency": (0, 0, 0)}, "found transparency"),
        ("b.gif", Image.new("RGB", (4, 4)), FRAMES, "found 2 frames, expected a still image"),
        ("b.tiff", Image.new("RGB", (4, 4)), FRAMES, "found 2 frames, expected a still image"),
        ("b.tiff", Image.new("F", (4, 4)), {}, "found floating-point pixels, expected 8 or 16 bits"),
        ("b.tiff", Image.new("I", (4, 4), 70_000), {}, "found pixels of 70000 to 70000, expected 8 or 16"),
        ("b.png", Image.new("1", (20_000, 20_000)), {}, "found an image of (20000x20000|too many pixels)"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_cannot_be_eight_bits_of_colour_is_refused(name, image, options, problem, first, cache):
    """As the first image, which decides the size, and after another."""
    if not first:
        put(cache, "a.png", Image.new("RGB", (4, 4)))
    put(cache, name, image, **options)
    with pytest.raises(ValueError, match=f"train/{name}: {problem}"):
        load_images("holidays")


TORN = [b"", b"II*\x00torn", b"\x89PNG\r\n\x1a\n" + bytes(30), b"GIF89a" + bytes(9)]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp"])
@pytest.mark.parametrize("content", TORN)
def test_torn_files_are_named(suffix, content, cache):
    put(cache, "a.png", Image.new("RGB", (4, 4)))
    (cache / "holidays" / "train" / f"b.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train/b.{suffix}: "):
        load_images("holidays")


def test_a_truncated_picture_is_refused(cache):
    put(cache, "a.png", Image.fromarray(colour_images(1)[0]))
    file = cache / "holidays" / "train" / "a.png"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a.png: cannot be read as an image"):
        load_images("holidays")


def test_what_is_no_image_is_refused(cache):
    (cache / "cifar10" / "train").mkdir(parents=True)
    (cache / "cifar10" / "train" / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"torn.png: cannot be read as an image"):
        load_images("cifar10")


@pytest.mark.parametrize(
    "images, found",
    [
        (colour_images(10, size=16), r"train images \(10, 3, 16, 16\), expected \(10, 3, 32, 32\)"),
        (colour_images(9), r"train images \(9, 3, 32, 32\), expected \(10, 3, 32, 32\)"),
        (colour_images(10)[::-1], r"train images with hash [0-9a-f]{12}, expected [0-9a-f]{12}; keep"),
        (colour_images(10).astype(np.float32), r"float32 \(10, 32, 32, 3\), expected uint8 \[N, H, W, C\]"),
    ],
)
def test_other_arrays_are_not_taken_for_cifar10(cache, small_cifar10, images, found):
    (cache / "cifar10").mkdir()
    np.savez(cache / "cifar10" / "train.npz", x=images)
    with pytest.raises(ValueError, match=rf"cifar10.*found {found}"):
        load_images("cifar10")


@pytest.mark.parametrize("arrays", [{"x": np.array([{}], dtype=object)}, {"labels": np.zeros(3)}])
def test_an_npz_without_images_is_refused(cache, arrays):
    """Objects are not unpickled: that would run whatever the file says."""
    (cache / "cifar10").mkdir()
    np.savez(cache / "cifar10" / "train.npz", **arrays)
    with pytest.raises(ValueError, match=r"train.npz: the images cannot be read.*(allow_pickle|'labels')"):
        load_images("cifar10")


@pytest.mark.parametrize(
    "name, how",
    [("celeba64", "research only.*img_align_celeba"), ("imagenet32", "registration.*train_data_batch_1")],
)
def test_a_set_that_cannot_be_downloaded_says_how_to_get_it(name, how):
    with pytest.raises(FileNotFoundError, match=f"found no {name} images.*{how}"):
        load_images(name)


def test_a_download_that_fails_says_where_to_put_the_set(monkeypatch):
    from torchvision.datasets import CIFAR10

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", offline)
    with pytest.raises(FileNotFoundError, match=r"cifar10: found no cifar10 images.*train.npz.*no network"):
        load_images("cifar10")


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("mnist", "train", "data set: found 'mnist', expected digits, cifar10, .*or the name of a folder in"),
        ("cifar10", "val", "cifar10 split: found 'val', expected one of train, test"),
    ],
)
def test_an_unknown_data_set_is_refused(name, split, message):
    with pytest.raises(ValueError, match=message):
        load_images(name, split)


@pytest.mark.parametrize("n", [0, 1798])
def test_more_images_than_the_set_has_are_refused(n):
    with pytest.raises(ValueError, match=f"digits train: found 1,797 images, expected at least n = {n:,}"):
        load_images("digits", n=n)


# -- the mix of data-limited training -----------------------------------------------------------------


def test_a_mix_has_its_share_of_real_images_and_none_twice():
    real, synthetic = torch.arange(100, 300), torch.arange(1000, 1200)
    mixed = mix(real, synthetic, 0.15)
    assert len(mixed) == 200 == len(mixed.unique())
    assert int((mixed < 1000).sum()) == 30
    assert set(mixed.tolist()) <= {*real.tolist(), *synthetic.tolist()}
    assert torch.equal(mixed, mix(real, synthetic, 0.15)) and not torch.equal(
        mixed, mix(real, synthetic, 0.15, 1)
    )


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_share_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=f"real fraction: found {fraction}, expected"):
        mix(torch.arange(10), torch.arange(10), fraction)


def test_a_mix_of_more_real_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match="real images: found 10, expected at least 50 for 50%"):
        mix(torch.arange(10), torch.arange(100), 0.5)


# -- the batches of Algorithm 2 -----------------------------------------------------------------------


@pytest.fixture
def process():
    return GaussianDiffusion.cosine(100)


def gentle():
    """A process of so little noise that float32 keeps x_0 readable in x_t."""
    return GaussianDiffusion([0.02] * 20)


def numbered(n):
    """Float samples that tell which they are: sample k is the number k, twice."""
    return torch.arange(n, dtype=torch.float32)[:, None].expand(n, 2).contiguous()


def shown(source):
    """Which numbered samples the next batch is made from."""
    batch = next(source)
    return source.diffusion.predict_x0(batch.x_t, batch.t, batch.eps)[:, 0].round().long().tolist()


def test_eps_is_the_noise_that_was_added():
    images = load_images("digits")[:64]
    batch = next(NoisedImages(gentle(), images, 64))
    x0 = gentle().predict_x0(batch.x_t, batch.t, batch.eps)
    differences = (x0[:, None] - to_model(images)).flatten(2).abs().amax(dim=2)  # of each from each image
    assert float(differences.min(dim=1).values.max()) < 1e-5
    assert sorted(differences.argmin(dim=1).tolist()) == list(range(64))


def test_the_target_is_the_posterior_of_the_image_behind_it(process):
    data = torch.randn(8, 2)
    batch = next(NoisedImages(process, data, 8, seed=1))
    # One image is behind each x_t; of all images' posteriors, one must be the target.
    errors = torch.stack(
        [
            (process.q_posterior(x0.expand(8, 2), batch.x_t, batch.t).mean - batch.target.mean)
            .abs()
            .amax(dim=1)
            for x0 in data
        ]
    )
    assert float(errors.min(dim=0).values.max()) < 1e-6
    log_variance = process.transition(batch.t).log_beta_tilde.float()
    assert_close(batch.target.log_variance, log_variance[:, None].expand(8, 2))


@pytest.mark.parametrize("data, observed", [(load_images("digits"), True), (numbered(50), False)])
def test_only_8_bit_images_count_as_observed(process, data, observed):
    assert next(NoisedImages(process, data, 8)).observed == observed


def test_x_t_has_the_moments_of_equation_4(process):
    """Over many batches, x_t - sqrt(alpha_bar_t) x_0 has mean 0 and variance 1 - alpha_bar_t, at every t."""
    source = NoisedImages(process, torch.full((1000, 50), 0.5), 1000)
    batches = list(itertools.islice(source, 20))
    x_t, t = torch.cat([b.x_t for b in batches]), torch.cat([b.t for b in batches])
    for level in range(0, 100, 9):
        alpha_bar = process.alpha_bar[level]
        noise = (x_t[t == level] - 0.5 * alpha_bar**0.5) / (1 - alpha_bar) ** 0.5
        # About 200 x 50 normals a level: standard errors 0.01 and 0.014. Five of them.
        assert abs(float(noise.mean())) < 0.05
        assert abs(float(noise.var()) - 1) < 0.07


def test_t_is_uniform(process):
    source = NoisedImages(process, torch.zeros(1000, 1), 1000)
    counts = torch.cat([next(source).t for _ in range(100)]).bincount(minlength=100)
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert len(counts) == 100
    assert 50 < chi_square < 160  # 99 degrees of freedom: 99 +- 14; one level never drawn adds 1000


def test_each_pass_covers_the_data_once_and_in_a_new_order():
    source = NoisedImages(gentle(), numbered(60), 20)
    first, second = ([*shown(source), *shown(source), *shown(source)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second


def test_a_last_batch_that_is_not_full_is_left_out():
    source = NoisedImages(gentle(), numbered(50), 20)
    for _ in range(2):
        two_batches = [*shown(source), *shown(source)]
        assert len(set(two_batches)) == 40


def the_next(source, n=20):
    return [
        torch.cat([b.x_t.flatten(), b.t.float(), b.eps.flatten(), b.target.mean.flatten()])
        for b in itertools.islice(source, n)
    ]


def test_a_loaded_state_gives_the_same_next_20_batches(process, tmp_path):
    data = load_images("digits")[:100]
    source, other = NoisedImages(process, data, 32, seed=1), NoisedImages(process, data, 32, seed=2)
    the_next(source, 7)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    expected = the_next(source)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(map(torch.equal, the_next(other), expected))


def test_seeds_differ_and_repeat(process):
    first, again, other = (
        the_next(NoisedImages(process, numbered(50), 8, seed=seed), 3) for seed in (1, 1, 2)
    )
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (4, 3, 5)])
def test_samples_may_have_any_shape(process, shape):
    source = NoisedImages(process, torch.randn(10, *shape), 5)
    batch = next(source)
    assert source.shape == shape
    assert batch.x_t.shape == batch.eps.shape == batch.target.mean.shape == (5, *shape)
    assert batch.x_t.dtype == torch.float32
    assert batch.t.shape == (5,)


def test_less_data_than_a_batch_is_refused(process):
    with pytest.raises(ValueError, match="data: found 7 samples, expected at least one batch of 8"):
        NoisedImages(process, numbered(7), 8)


def test_flips_mirror_half_of_the_images_left_to_right():
    images = load_images("digits")
    source = NoisedImages(gentle(), images, 256, flip=True)
    plain = {tuple(image.flatten().tolist()) for image in images}
    flipped = 0
    for _ in range(4):
        batch = next(source)
        x0 = gentle().predict_x0(batch.x_t, batch.t, batch.eps)
        restored = to_uint8((x0 * 127.5 + 127.5).round() / 127.5 - 1 + 1e-6)
        for image in restored:
            as_is = tuple(image.flatten().tolist()) in plain
            mirrored = tuple(image.flip(-1).flatten().tolist()) in plain
            assert as_is or mirrored
            flipped += mirrored and not as_is
    assert 440 < flipped < 584  # 1,024 images, half of them: 512 give or take 4.5 deviations of 16
