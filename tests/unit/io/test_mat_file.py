"""MATLAB files: both kinds give the same values, sparse matrices inside cells included."""

import io

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from boxsup_dist.errors import RecordError
from boxsup_dist.io.mat_file import read_mat
from tests.mat73 import savemat73


@pytest.mark.parametrize("kind", ["5", "7.3"])
def test_structs_cells_and_sparse_matrices_become_plain_values(tmp_path, kind):
    sparse = scipy.sparse.csc_matrix(([1.0, 2.0], ([0, 2], [1, 3])), (3, 4))
    map_ = np.arange(12, dtype=np.uint8).reshape(3, 4)
    file = tmp_path / "a.mat"
    if kind == "5":
        cells = np.empty((2, 1), object)
        cells[:, 0] = [sparse, np.eye(2)]
        scipy.io.savemat(file, {"GTcls": {"Boundaries": cells, "Segmentation": map_}})
    else:
        savemat73(file, {"GTcls": {"Boundaries": [sparse, np.eye(2)], "Segmentation": map_}})
    found = read_mat(file.read_bytes())["GTcls"]
    assert set(found) == {"Boundaries", "Segmentation"}
    assert (found["Segmentation"] == map_).all() and found["Segmentation"].dtype == np.uint8
    assert (found["Boundaries"][0] == sparse.toarray()).all() and (found["Boundaries"][1] == np.eye(2)).all()


def test_damaged_files_are_reported():
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"LabelMap": np.zeros((50, 50), np.uint16)}, do_compression=True)
    for data in (b"", b"MATLAB 7.3", buffer.getvalue()[:150], b"\x89HDF\r\n\x1a\nno"):
        with pytest.raises(RecordError, match="not a readable MATLAB file"):
            read_mat(data)
