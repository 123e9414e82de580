"""The first page: which models, which verdicts, against which reference, on which machine, when, from which commit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lib.alignment.evidence import PAIRS, Evidence, pointer
from lib.record import Record
from lib.report.bound import badge, bound, count, counted, field
from lib.report.messages import Messages
from lib.report.themes import grouped

ABREAST = 3  # models beside each other in one table, as many as A4 holds
LISTED = 6  # verdicts that fail, or were not run, that the first page names

JUDGED = ("PASS", "FAIL")
COUNTED = ("FAIL", "PASS", "UNDERPOWERED", "NOT RUN")  # what is shown only is no answer to count
LEGEND = ("PASS", "FAIL", "UNDERPOWERED", "SHOWN", "NOT RUN")


@dataclass(frozen=True)
class Column:
    """One model in the table of verdicts."""

    name: Markup
    anchor: str
    cells: Mapping[tuple[str, str], Markup]  # (question, pair) -> verdict; no entry: not asked
    counts: Markup


@dataclass(frozen=True)
class Summary:
    headline: Markup
    verdict: str  # the worst: FAIL, NOT RUN or PASS
    kinds: tuple[str, ...]  # of the verdicts, which are explained
    facts: tuple[tuple[str, Markup], ...]
    themes: Mapping[str, tuple[str, ...]]  # theme -> its questions
    pairs: tuple[
        tuple[str, str], ...
    ]  # "published-torch", and what it is called; of a user's port only those of the frameworks
    tables: tuple[tuple[Column, ...], ...]
    failing: tuple[Markup, ...]
    missing: tuple[Markup, ...]


def summary(
    evidence: Mapping[str, Evidence],
    records: Mapping[str, Sequence[Record]],
    shared: Sequence[Record],
    anchors: Mapping[str, str],
    reason: Callable[[str, int], Markup],
    words: Messages,
) -> Summary:
    """shared: records of no one model; `reason(model, index)` is the sentence of a verdict."""
    lists = {_ref(one): _verdicts(one) for one in evidence.values()}
    columns = [_column(one, anchors[model], words) for model, one in evidence.items()]
    questions = dict.fromkeys(verdict["question"] for found in lists.values() for verdict in found)
    failed, not_run = counted(("FAIL",), lists.values()), counted(("NOT RUN",), lists.values())
    judged = counted(JUDGED, lists.values())
    headline = (
        "headline_fail"
        if failed
        else "headline_none"
        if not judged
        else "headline_gaps"
        if not_run
        else "headline_pass"
    )
    kinds, asked = ({verdict[key] for found in lists.values() for verdict in found} for key in ("verdict", "pair"))
    return Summary(
        Markup(escape(words(headline))).format(counts=_counts(lists, words)),
        "FAIL" if failed else "NOT RUN" if not_run or not judged else "PASS",
        tuple(kind for kind in LEGEND if kind in kinds),
        tuple(_facts(evidence, records, shared, words)),
        grouped(questions),
        tuple(
            (f"{a}-{b}", words("pair").format(first=words(a), second=words(b))) for a, b in PAIRS if f"{a}-{b}" in asked
        ),
        tuple(tuple(columns[i : i + ABREAST]) for i in range(0, len(columns), ABREAST)),
        tuple(_named(evidence, anchors, "FAIL", reason, words)),
        tuple(_named(evidence, anchors, "NOT RUN", reason, words)),
    )


def _ref(evidence: Evidence) -> str:
    return pointer(evidence.run_id("none", "compare"), "fields", "verdicts")


def _verdicts(evidence: Evidence) -> list[Mapping]:
    return evidence.field("none", "compare", "verdicts")


def _name(evidence: Evidence, words: Messages) -> Markup:
    return bound(evidence.model, pointer(evidence.run_id("none", "compare"), "model"), words)


def _counts(lists: Mapping[str, Sequence[Mapping]], words: Messages) -> Markup:
    """How many verdicts are of each kind, where there are any."""
    text = Markup(escape(words("counted")))
    held = [kind for kind in COUNTED if counted((kind,), lists.values())]
    return escape(words("listed")).join(text.format(number=count((kind,), lists), verdict=words(kind)) for kind in held)


def _column(evidence: Evidence, anchor: str, words: Messages) -> Column:
    cells = {}
    for i, verdict in enumerate(_verdicts(evidence)):
        label = badge(verdict["verdict"], f"{_ref(evidence)}/{i}/verdict", words)
        cells[verdict["question"], verdict["pair"]] = Markup('<a href="#{}">{}</a>').format(
            f"{anchor}-{verdict['question']}", label
        )
    return Column(_name(evidence, words), anchor, cells, _counts({_ref(evidence): _verdicts(evidence)}, words))


def _named(
    evidence: Mapping[str, Evidence],
    anchors: Mapping[str, str],
    kind: str,
    reason: Callable[[str, int], Markup],
    words: Messages,
) -> Iterator[Markup]:
    """The first of the verdicts of a kind, each with its reason. Of one question the first pair stands for all."""
    found = {}
    for model, one in evidence.items():
        for i, verdict in enumerate(_verdicts(one)):
            if verdict["verdict"] == kind:
                found.setdefault((model, verdict["question"]), (i, verdict["pair"]))
    for (model, question), (i, pair) in list(found.items())[:LISTED]:
        first, second = pair.split("-")
        yield Markup('{}, <a href="#{}">{}</a> ({}): {}').format(
            _name(evidence[model], words),
            f"{anchors[model]}-{question}",
            words(question),
            words("pair").format(first=words(first), second=words(second)),
            reason(model, i),
        )
    if len(found) > LISTED:
        yield escape(words("and_more"))


# ------------------------------------------------------------------------------------------------------------- facts


def _facts(
    evidence: Mapping[str, Evidence], records: Mapping[str, Sequence[Record]], shared: Sequence[Record], words: Messages
) -> Iterator[tuple[str, Markup]]:
    """(label key, value); a value that not all models share says whose it is."""
    for key, tell in (
        ("reference", _reference),
        ("frameworks", _frameworks),
        ("machine", _machine),
        ("commit", _commit),
    ):
        groups: dict[str, tuple[Markup, list[str]]] = {}
        for model in evidence:
            value = tell(records[model], words)
            groups.setdefault(value.striptags(), (value, []))[1].append(model)
        if len(groups) == 1:
            yield key, next(iter(groups.values()))[0]
        else:
            yield (
                key,
                Markup("; ").join(
                    Markup("{} ({})").format(
                        value, Markup(", ").join(_name(evidence[model], words) for model in models)
                    )
                    for value, models in groups.values()
                ),
            )
    yield "data_set", _data_set(shared, words)
    yield "measured", _measured([one for found in records.values() for one in measured(found)], words)


def measured(records: Sequence[Record]) -> list[Record]:
    """The records that a framework wrote; of a model without any, all there are."""
    return [one for one in records if one.side in ("torch", "jittor")] or list(records)


def _reference(records: Sequence[Record], words: Messages) -> Markup:
    found = next((one for one in records if one.side == "published"), None)
    if found is None:
        return escape(words("reference_absent"))
    return field(found, words, "provenance", "versions", "published")


def _frameworks(records: Sequence[Record], words: Messages) -> Markup:
    found = {}
    for one in records:
        if one.side in one.provenance.versions and one.side != "published":
            version = one.provenance.versions[one.side]
            found.setdefault(
                (one.side, version),
                Markup("{} {}").format(words(one.side), field(one, words, "provenance", "versions", one.side)),
            )
    return Markup(", ").join(found.values()) or escape("–")


def _machine(records: Sequence[Record], words: Messages) -> Markup:
    names = {"cpu": "cpu", "cores": "cores", "memory": "memory_gib", "os": "os"}
    found = {one.provenance.machine: one for one in reversed(measured(records))}
    return Markup("; ").join(
        Markup(escape(words("machine_value"))).format(
            **{key: field(one, words, "provenance", "machine", name) for key, name in names.items()}
        )
        for one in found.values()
    )


def _data_set(shared: Sequence[Record], words: Messages) -> Markup:
    held = next((one for one in shared if one.stage == "data"), None)
    if held is None:
        return escape(words("data_set_absent"))
    images = {split: field(held, words, "fields", "splits", split, "images") for split in ("train", "val")}
    return Markup(escape(words("data_set_value"))).format(name=field(held, words, "fields", "name"), **images)


def _measured(records: Sequence[Record], words: Messages) -> Markup:
    order = sorted(records, key=lambda one: one.provenance.started)
    first, last = (field(one, words, "provenance", "started") for one in (order[0], order[-1]))
    return Markup(escape(words("measured_value"))).format(first=first, last=last)


def _commit(records: Sequence[Record], words: Messages) -> Markup:
    found = {}
    for one in measured(records):
        origin = one.provenance
        text = field(one, words, "provenance", "git_commit") if origin.git_commit else escape(words("commit_absent"))
        dirty = f" ({words('commit_dirty')})" if origin.git_dirty else ""
        found.setdefault((origin.git_commit, origin.git_dirty), Markup("{}{}").format(text, dirty))
    return Markup(", ").join(found.values())
