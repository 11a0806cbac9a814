"""What a run reads: its tables, checked against the supervision and each other, and the network for their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from boxsup_dist.config import SourceSettings, TrainConfig
from boxsup_dist.data.shared_images import find_duplicates
from boxsup_dist.data.sources import Mixture, Source, class_weights, make_units
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.errors import SettingError, TableError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import parse_json
from boxsup_dist.model.networks import NetworkSpec, network_spec
from boxsup_dist.model.weights import absolute_spec
from boxsup_dist.runs.kept_config import has_trained
from boxsup_dist.runs.layout import RunFiles


@dataclass(frozen=True)
class Inputs:
    """The opened tables of a run, the names of their classes, and the network for these classes."""

    network: NetworkSpec
    mixture: Mixture
    val_records: Table | None
    class_names: tuple[str, ...]
    can_measure_labels: bool
    global_batch_size: int

    @property
    def num_images(self) -> int:
        """Images that the run trains on."""
        return sum(len(unit.rows) for unit in self.mixture.units)

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_images // self.global_batch_size)

    @property
    def num_val_images(self) -> int:
        """Images that an evaluation counts: the validation records with a mask; without any mask, all of them."""
        if self.val_records is None:
            return 0
        return self.val_records.counts.get("with_mask", 0) or self.val_records.num_rows

    @property
    def num_left_out(self) -> int:
        """Images that the run does not train on, because another of its tables has them."""
        return sum(unit.where.num_rows - len(unit.rows) for unit in self.mixture.units)


def with_absolute_uris(config: TrainConfig) -> TrainConfig:
    """The same configuration with absolute paths: it means the same, and compares equal, from any directory."""

    def absolute(uri: str | None) -> str | None:
        return None if uri is None else storage.absolute(uri)

    sources = [
        replace(
            source,
            records=storage.absolute(source.records),
            proposals=absolute(source.proposals),
            label_maps=absolute(source.label_maps),
        )
        for source in config.sources
    ]
    return replace(
        config,
        run_dir=storage.absolute(config.run_dir),
        network=replace(config.network, weights=absolute_spec(config.network.weights)),
        sources=tuple(sources),
        val_records=absolute(config.val_records),
    )


def open_inputs(config: TrainConfig) -> Inputs:
    """Open the tables and check everything that can be checked without reading rows.

    Raises:
        TableError: A table is absent, unfinished, of another kind, or was made from other records.
        SettingError: The tables do not give what the settings need, or there is no such network.
        InputError: An image is in two tables and config.duplicates refuses that.
    """
    sources = [_open_source(settings) for settings in config.sources]
    val_records = open_table(config.val_records, "records") if config.val_records else None
    if val_records is not None:
        evaluates_boxes(val_records)  # refuses a table without both
    classes = sources[0].records.classes
    for source in sources:
        if source.records.classes != classes:
            raise SettingError(
                "the sources have different classes",
                file=source.records.uri,
                field="classes",
                value=f"{len(source.records.classes)} classes",
                expected=f"the {len(classes)} of {sources[0].records.uri}: all sources of a run need the same classes",
            )
    if val_records is not None and val_records.classes != classes:
        raise SettingError(
            "val_records has other classes than the sources",
            file=val_records.uri,
            field="val_records",
            value=f"{len(val_records.classes)} classes",
            expected=f"the {len(classes)} of {sources[0].records.uri}",
        )
    network = network_spec(config.network, len(classes))
    not_trained = _split_by_mask(sources)
    left_out = find_duplicates([source.records for source in sources], val_records, config.duplicates, not_trained)
    balance, foreground = config.optimizer.class_balance, config.optimizer.foreground_weight
    weights = None if (balance, foreground) == (0, 1) else class_weights(sources, balance, foreground)
    mixture = Mixture(make_units(sources, left_out), config.assignment, config.augment, config.seed, weights)
    measurable = [mixture.units[i].source for i in mixture.with_measurable_labels()]
    with_mask_source = _with_mask_source(sources)
    can_measure = any(
        source.records.counts.get("with_mask", 0) > 0 and source.records.uri not in with_mask_source
        for source in measurable
    )
    can_measure = config.measure_labels and can_measure
    inputs = Inputs(network, mixture, val_records, classes, can_measure, config.optimizer.global_batch_size)
    if inputs.num_images == 0:
        raise SettingError(
            "no image is left to train on: another table of the run has each of them",
            field="duplicates",
            value=config.duplicates,
            expected="sources with images that val_records and the other sources lack",
        )
    return inputs


def evaluates_boxes(records: Table) -> bool:
    """True if records can only be evaluated with their boxes, because none has a mask.

    Raises:
        SettingError: They have no boxes either.
    """
    if records.counts.get("with_mask", 0):
        return False
    if not records.counts.get("boxes", 0):
        raise SettingError("no record has a mask or a box to evaluate with", file=records.uri, field="records")
    return True


def _with_mask_source(sources: Sequence[Source]) -> set[str]:
    return {source.records.uri for source in sources if source.supervision == "mask"}


def _split_by_mask(sources: Sequence[Source]) -> list[frozenset[int]]:
    """Rows of each source that another source of the same records trains on.

    Of two sources of one table, the one with the supervision mask has the records with a mask, the other one the rest.

    Raises:
        SettingError: A record has no mask, and mask is the only supervision of its table.
    """
    uris, with_mask_source = [source.records.uri for source in sources], _with_mask_source(sources)
    rows: list[frozenset[int]] = []
    for source in sources:
        records, is_mask = source.records, source.supervision == "mask"
        with_mask = records.counts.get("with_mask", 0)
        is_shared = uris.count(records.uri) > 1 and records.uri in with_mask_source
        if is_mask and with_mask < records.num_rows and not is_shared:
            raise SettingError(
                "mask supervision needs a ground-truth mask in every record",
                file=records.uri,
                field="supervision",
                value=f"{with_mask} of {records.num_rows} records have one",
                expected="all, or another supervision; or for the other records a second source of the same table: "
                f"--also records={records.uri},supervision=box,proposals=URI",
            )
        has_mask = _rows_with_mask(records) if is_shared else frozenset()
        rows.append(frozenset(range(records.num_rows)) - has_mask if is_shared and is_mask else has_mask)
    return rows


def _rows_with_mask(records: Table) -> frozenset[int]:
    shards = records.read_shards(("gt_label_map",))
    has_mask = [valid for shard in shards for valid in shard.column("gt_label_map").is_valid().to_pylist()]
    return frozenset(row for row, valid in enumerate(has_mask) if valid)


def _open_source(settings: SourceSettings) -> Source:
    records = open_table(settings.records, "records")
    partners = {}
    for name, uri in (("proposals", settings.proposals), ("label_maps", settings.label_maps)):
        partners[name] = open_table(uri, name) if uri is not None else None
    found = partners["label_maps"]
    if found is not None and settings.supervision not in ("box", "label_maps", found.settings["method"]):
        raise SettingError(
            "the label maps were made by another method",
            file=found.uri,
            field="supervision",
            value=settings.supervision,
            expected=found.settings["method"],
        )
    return Source(records, settings.supervision, **partners)


def check_tables(run_dir: str, tables: Mapping[str, Table]) -> None:
    """Check that a run which has trained continues with the content of the tables that it began with.

    Raises:
        TableError: A table was built again, with other content; names it.
    """
    uri = RunFiles(run_dir).tables
    if not storage.exists(uri) or not has_trained(run_dir):
        return
    kept = parse_json(dict[str, str], storage.read_bytes(uri), file=uri)
    for name, table in tables.items():
        if kept.get(name, table.fingerprint) != table.fingerprint:
            raise TableError(
                "the table has other content than when the run began: bring it back, or train in another run_dir",
                file=table.uri,
                field=f"fingerprint of {name}, in {uri}",
                value=table.fingerprint,
                expected=kept[name],
            )


def keep_tables(run_dir: str, tables: Mapping[str, Table]) -> None:
    """Store what `check_tables` compares."""
    storage.write_json(RunFiles(run_dir).tables, {name: table.fingerprint for name, table in tables.items()})


def tables_by_name(inputs: Inputs) -> dict[str, Table]:
    """Every table of the run by its part in it: "training", for one of several sources "training 2"."""
    found: dict[str, Table | None] = {}
    for number, source in enumerate(inputs.mixture.sources, 1):
        suffix = f" {number}" if number > 1 else ""
        found |= {
            f"training{suffix}": source.records,
            f"proposals{suffix}": source.proposals,
            f"label maps{suffix}": source.label_maps,
        }
    found["evaluation"] = inputs.val_records
    return {name: table for name, table in found.items() if table is not None}
