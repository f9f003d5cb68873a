"""Folders of image files: what is read, what is converted, and what is left out, which is said."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# Formats of one still picture each, as Pillow reads them.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
# And no others under their names: Pillow would hand an EPS to Ghostscript, which runs programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
_ORIENTATION = 0x0112  # of EXIF
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F")


def read_folder(folder: Path, shape: tuple[int, int, int] | None = None) -> Tensor:
    """Every image under a folder, uint8 ``[N, C, H, W]``, in the order of their paths. shape: of each
    ``(C, H, W)``, with 1 channel for grey; without one the first image decides.

    16 bits are scaled to 8, palettes and CMYK become RGB, colours grey where the shape is, and grey RGB; a
    photograph is turned as its camera says. What was converted and what was left out (other files, hidden
    ones) is said in one warning; a set that needed neither is read without a word.

    Errors: ValueError for a folder without images, and for an image that is no such: torn, of another size,
    with transparency, moving, or with numbers that have no white, as a float TIFF's.
    """
    Image.init()  # all that Pillow reads; by itself it waits with some until it has to guess
    visible, left_out = [], Counter()
    for file in sorted(folder.rglob("*")):
        if file.is_dir() and not file.is_symlink():
            continue
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            left_out["hidden"] += 1
        elif not file.is_file():  # a folder elsewhere, which is not followed; a pipe
            left_out["links to folders" if file.is_dir() else "links or devices without a file"] += 1
        elif file.suffix.lower() in SUFFIXES:
            visible.append(file)
        else:
            left_out[file.suffix.lower() or "without a suffix"] += 1
    if not visible:
        found = f" beside {_listed(left_out)}" if left_out else ""
        raise ValueError(f"{folder}: found no images{found}, expected {', '.join(SUFFIXES)} files")
    images, converted = [], Counter()
    for file in visible:
        image, how = _read(file, shape)
        shape = shape or tuple(image.shape)
        if tuple(image.shape) != shape:
            found, expected = ("x".join(map(str, size)) for size in (image.shape[1:], shape[1:]))
            raise ValueError(f"{file}: found an image of {found} (height x width), expected {expected}")
        converted.update([how] if how else [])
        images.append(image)
    notes = [f"converted {_listed(converted)}"] if converted else []
    notes += [f"left out {_listed(left_out)}"] if left_out else []
    if notes:
        kind = "grey" if shape[0] == 1 else "RGB"
        warnings.warn(f"{folder}: read {len(images):,} {kind} images, {'; '.join(notes)}", stacklevel=2)
    return torch.stack(images)


def _listed(counts: Counter) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items()))


def _read(file: Path, shape: tuple[int, int, int] | None) -> tuple[Tensor, str | None]:
    """An image ``[C, H, W]``, uint8, and from what it was converted, if it was."""
    try:
        with Image.open(file, formats=_FORMATS) as opened:  # which reads no more than its head
            mode, (width, height) = opened.mode, opened.size
            turned = opened.getexif().get(_ORIENTATION, 1)
            if turned in (5, 6, 7, 8):
                width, height = height, width
            # Before it is unpacked, which may take all the memory.
            if shape is not None and (height, width) != tuple(shape[1:]):
                found, expected = f"{height}x{width}", f"{shape[1]}x{shape[2]}"
                raise ValueError(f"found an image of {found} (height x width), expected {expected}")
            # A camera's MPO is a photograph with previews behind it.
            if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
                raise ValueError(f"found {opened.n_frames} frames, expected a still image")
            grey = shape[0] == 1 if shape else mode in _GREY
            # A PPM of 8 bits is read raw.
            deep = mode == "RGB" and any(";16" in str(tile) or tile[0] == "ppm" for tile in opened.tile)
            image, how = _eight_bits(opened if turned == 1 else ImageOps.exif_transpose(opened))
            how = how or ("16-bit colours to 8 bits" if deep else None)  # which Pillow does
            wanted = "L" if grey else "RGB"
            how = how or (None if image.mode == wanted else f"{image.mode} to {wanted}")
            how = how or ("turned as the camera says" if turned != 1 else None)
            values = np.array(image.convert(wanted))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file}: found an image of too many pixels to be safe ({error})") from error
    except (OSError, SyntaxError) as error:  # Pillow's own kinds for what is not an image
        raise ValueError(f"{file}: cannot be read as an image ({error})") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    values = torch.from_numpy(values)
    return (values[None] if grey else values.permute(2, 0, 1)), how


def _eight_bits(image: Image.Image) -> tuple[Image.Image, str | None]:
    """An opaque image of 8 bits per channel, and from what it was made, if it had others."""
    mode = image.mode
    if mode == "F":
        raise ValueError("found floating-point pixels, expected 8 or 16 bits per channel")
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"found pixels of {low} to {high}, expected 8 or 16 bits per channel")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)), "16-bit grey to 8 bits"
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        whole = image.convert("RGBA")
        if whole.getextrema()[3][0] < 255:
            raise ValueError(
                "found transparency, which has no colour of its own; lay it on a background first"
            )
        return whole.convert("L" if mode in ("LA", "La") else "RGB"), "with an opaque alpha channel"
    if mode == "P":
        return image.convert("RGB"), "of a palette"
    return image, None
