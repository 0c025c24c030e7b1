from io import BytesIO
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from support.edits import LAYER, covariance
from support.families import KINDS

from tl_rome.editors import KeyCovariance, import_npz
from tl_rome.errors import InputError, StorageError

KIND = KINDS[0]


@pytest.mark.parametrize("prefix", ["mom2.mom2 mom2.count", "mom2_sum count"])
def test_statistics_of_the_authors_files_solve_for_the_same_direction(tiny, tmp_path, prefix):
    model = tiny("llama", KIND)
    own = covariance(model)
    total, count = prefix.split()
    sums = (own.second_moment * own.count).float().numpy()
    np.savez(tmp_path / "stats.npz", **{total: sums, count: np.array(own.count), "mom2.constructor": "x"})
    found = import_npz(tmp_path / "stats.npz", model, LAYER)
    assert (found.count, found.source, found.model, found.prepend_bos) == (own.count, "stats.npz", own.model, False)
    torch.testing.assert_close(found.second_moment, own.second_moment, rtol=1e-6, atol=1e-8)
    key = torch.randn(64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.solve(key), own.solve(key), rtol=1e-3, atol=1e-3)
    again = KeyCovariance.load(found.save(tmp_path / "own.safetensors"))
    assert again.digest == found.digest


def test_unsuitable_files_are_refused(tiny, tmp_path):
    model, path = tiny("llama", KIND), tmp_path / "stats.npz"
    np.savez(path, **{"mom2.mom2": np.eye(3, dtype=np.float32), "mom2.count": np.array(5)})
    with pytest.raises(StorageError, match=r"a matrix \(3, 3\) of 5 tokens; layer 1 of this model needs \(64, 64\)"):
        import_npz(path, model, LAYER)
    with pytest.raises(InputError, match="layer 4 is out of range"):
        import_npz(path, model, 4)
    np.savez(path, **{"mom2.mom2": np.full((64, 64), np.nan, np.float32), "mom2.count": np.array(5)})
    with pytest.raises(StorageError, match="finite"):
        import_npz(path, model, LAYER)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(StorageError, match="no second moment"):
        import_npz(path, model, LAYER)
    path.write_bytes(b"junk")
    with pytest.raises(StorageError, match=r"damaged or is not an \.npz file"):
        import_npz(path, model, LAYER)
    with pytest.raises(StorageError, match="damaged"):
        import_npz(tmp_path / "absent.npz", model, LAYER)


def test_checksums_of_a_file_are_compared_beyond_what_numpy_reads(tiny, tmp_path):
    path, total, count = tmp_path / "stats.npz", BytesIO(), BytesIO()
    np.save(total, np.eye(64, dtype=np.float32))
    np.save(count, np.array(5))
    with ZipFile(path, "w") as archive:
        archive.writestr("mom2.mom2.npy", total.getvalue() + b"more")
        archive.writestr("mom2.count.npy", count.getvalue())
    assert import_npz(path, tiny("llama", KIND), LAYER).count == 5
    path.write_bytes(path.read_bytes().replace(np.float32(1).tobytes(), np.float32(2).tobytes(), 1))
    with pytest.raises(StorageError, match=r"mom2.mom2.npy is not what its checksum says"):
        import_npz(path, tiny("llama", KIND), LAYER)


def test_the_golden_statistics_are_read(shared_data, smollm2):
    found = import_npz(shared_data / "golden" / "cov_layer5.npz", smollm2(KIND), 5, source="wikitext-2")
    assert found.count == 129_580
    assert torch.linalg.eigvalsh(found.second_moment)[0] > 0
