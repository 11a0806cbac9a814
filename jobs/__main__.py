"""BoxSup: segmentation networks trained from bounding boxes. One command prepares data, one trains, others use it."""

from __future__ import annotations

from boxsup_dist.runs.command_line import call, clear_errors, front_door

COMMANDS = {
    "own boxes, the whole way": ("start",),
    "prepare data": (
        "prepare",
        "make_synthetic",
        "build_records",
        "build_proposals",
        "build_label_maps",
        "build_data",
        "get_hed_weights",
        "proposal_quality",
        "verify",
    ),
    "train": ("demo", "train", "reproduce", "reassign"),
    "use a trained network": (
        "evaluate",
        "compare",
        "decompose",
        "tune_crf",
        "trimap",
        "gallery",
        "figures",
        "predict",
        "serve",
        "export_labels",
        "export_model",
    ),
    "use a cluster": ("calibrate", "plan", "submit"),
    "maintain": ("bench", "drill", "compare_measures", "spoilt_boxes", "results_page"),
}


def main() -> None:
    """List the commands, or run the one that the command line names."""
    with clear_errors():
        call("jobs", *front_door("jobs", COMMANDS))


if __name__ == "__main__":
    main()
