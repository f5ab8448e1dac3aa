"""MetaImage files against ITK, which reads and places them."""

import itk
import numpy as np
import pytest

from scripts.core.mha import write_mha


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint8, itk.UC), (np.float32, itk.F)])
@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (1, 3)])
def test_itk_reads_what_was_written_where_it_lies(tmp_path, dtype, kind, shape):
    pixels = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    write_mha(tmp_path / "a.mha", pixels, spacing_mm=(0.1, 0.2), origin_mm=(1 / 3, -2e-7))
    image = itk.imread(str(tmp_path / "a.mha"))
    assert isinstance(image, itk.Image[kind, 2])
    assert np.array_equal(itk.array_from_image(image), pixels)
    assert tuple(image.GetSpacing()) == (0.1, 0.2)
    assert tuple(image.GetOrigin()) == (1 / 3, -2e-7)
