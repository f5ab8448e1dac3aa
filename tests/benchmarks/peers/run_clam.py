"""CLAM: its own scripts ``create_patches_fp.py`` and ``extract_features_fp.py``, with another encoder.

CLAM reads levels of the file. Where no level has the magnification, patches of the next finer one are larger, and its
second script makes them smaller.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import h5py
import openslide
import pandas
from runner import MEAN, STD, parse_options, report, resnet34

# By default CLAM drops pieces of tissue below 26 million pixels of the finest level, which all of small slides is.
PRESET = "bwh_biopsy.csv"


def main() -> None:
    """Run both scripts for each magnification, all in this process, which spares CLAM to start several times."""
    args = parse_options()
    sys.path.insert(0, str(args.checkout))
    os.chdir(args.checkout)
    from utils.transform_utils import get_eval_transforms

    import models

    network = resnet34(args.weights)
    models.get_encoder = lambda _name, target_img_size: (network, get_eval_transforms(MEAN, STD, target_img_size))
    # Its scripts take one level and one suffix for all slides: those of the first.
    slides = sorted(args.slides.iterdir())
    folders = [args.output / f"{magnification:g}x" for magnification in args.magnifications]
    # First the patches of all magnifications: its pools of processes are not to be forked from computing threads.
    for magnification, folder in zip(args.magnifications, folders, strict=True):
        level, patch_px = level_of(slides[0], magnification, args.patch_size)
        run(
            "create_patches_fp.py",
            ["--seg", "--patch", f"--preset={PRESET}", f"--source={args.slides}", f"--save_dir={folder}"],
            [f"--patch_level={level}", f"--patch_size={patch_px}", f"--step_size={patch_px}"],
        )
    for folder in folders:
        # The second script stops at a slide in which the first found no patch.
        rows = pandas.read_csv(folder / "process_list_autogen.csv")
        has_patches = [(folder / "patches" / f"{Path(name).stem}.h5").is_file() for name in rows["slide_id"]]
        rows[has_patches].to_csv(folder / "with_patches.csv", index=False)
        run(
            "extract_features_fp.py",
            [f"--data_h5_dir={folder}", f"--data_slide_dir={args.slides}", f"--slide_ext={slides[0].suffix}"],
            [f"--csv_path={folder / 'with_patches.csv'}", f"--feat_dir={folder / 'features'}"],
            [f"--batch_size={args.batch_size}", f"--target_patch_size={args.patch_size}"],
        )
    shapes = []
    for path in args.output.glob("*x/features/h5_files/*.h5"):
        with h5py.File(path) as file:
            shapes.append(file["features"].shape)
    report(args.report, shapes)


def level_of(slide: Path, magnification: float, patch_size: int) -> tuple[int, int]:
    """The coarsest level that is no coarser than the magnification, and a patch's side in its pixels."""
    with openslide.OpenSlide(slide) as file:
        mpp = float(file.properties[openslide.PROPERTY_NAME_MPP_X])
        downsample = 10 / magnification / mpp
        # A level's downsample is rounded: 4.0003 is 4.
        level = file.get_best_level_for_downsample(downsample * 1.01)
        return level, round(patch_size * downsample / file.level_downsamples[level])


def run(script: str, *options: list[str]) -> None:
    """Run a script of CLAM."""
    sys.argv = [script, *(option for group in options for option in group)]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
