"""Reading a public set into a workspace as a new suite: ``safegene suite add``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from safegene.checkpoints.sources.files import PlainFile, read_file
from safegene.datasets.prompts import Prompt, prompt_lines
from safegene.datasets.suite_library import suite_folder
from safegene.datasets.suites import Card, LoadOptions, Suite, collect_rows, format_named, write_suite
from safegene.datasets.suites.card import Transform, check_known, count_kinds, expectations_for
from safegene.datasets.suites.formats import SuiteFormat
from safegene.datasets.suites.loading import Item
from safegene.datasets.suites.tables import decompress
from safegene.datasets.suites.wrappers import read_templates, translate, wrap
from safegene.errors import DigestMismatch, ParamsError
from safegene.text import redact, redact_text
from safegene.workspace.digest import digest_bytes
from safegene.workspace.layout import Workspace


@dataclass(frozen=True)
class SuiteRequest:
    """The suite that `add_suite` should make.

    Attributes:
        name: of the new suite.
        source: file, folder or URI (see `safegene.checkpoints.sources.files`).
        format: a name of `safegene.datasets.suites.SUITE_FORMATS`.
        licence: as the set's authors state it.
        origin: where a local file comes from, as a URL; empty for a URI.
        version: of the set.
        options: of the loader.
        templates: file of jailbreak templates, or "".
        per_behaviour: templates for each harmful behaviour.
        translations: language -> file of the same set in that language.
        sha256: expected digest of the source file, or "".
    """

    name: str
    source: str
    format: str
    licence: str
    origin: str = ""
    version: str = "1"
    options: LoadOptions = LoadOptions()
    templates: str = ""
    per_behaviour: int = 1
    translations: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""


def add_suite(ws: Workspace, request: SuiteRequest) -> Suite:
    """Read a public set and write it as a new suite of the workspace.

    Raises:
        ParamsError: the licence or the origin is missing, a value contains a secret, or a format or option is unknown.
        SourceError: the source cannot be read.
        FormatError: the file does not have the format.
        DigestMismatch: the file has another digest than ``request.sha256``.
        ArtifactError: there is a suite of that name.
    """
    folder = suite_folder(ws, request.name)
    suite_format = format_named(request.format)
    hint = f"look it up; the authors of {request.format} state: {suite_format.licence}"
    licence = check_known("licence (--licence)", request.licence, hint=hint)
    file = read_file(request.source, suite_format.files)
    origin = _origin(request, file)
    if request.sha256 and (got := digest_bytes(file.data)) != request.sha256:
        raise DigestMismatch(f"expected {file.name} with {request.sha256}, got {got}, from {request.source}")
    items = _load(suite_format, file, request.options)
    _check_options(request, suite_format, items)
    files = {file.name: file.data}
    base = collect_rows(items, request.options, file.name).rows
    derived, transforms = _transform(base, request, suite_format, files)
    loaded = collect_rows([*items, *derived], request.options, file.name)
    options, rows = request.options, loaded.rows
    categories = tuple(sorted({row.category for row in rows}))
    card = Card(
        name=request.name,
        version=check_known("version (--version)", request.version),
        source=origin,
        revision=file.revision,
        licence=licence,
        format=request.format,
        options={"split": options.split, "languages": options.languages, "without": options.without},
        files={name: digest_bytes(data) for name, data in sorted(files.items())},
        sha256=digest_bytes(prompt_lines(rows)),
        rows=count_kinds(rows),
        left_out=dict(loaded.left_out),
        transforms=transforms,
        categories=categories,
        longest=options.longest,
        expectations=expectations_for({row.kind for row in rows}, {options.split}, categories, options.longest),
    )
    return write_suite(folder, card, rows)


def _origin(request: SuiteRequest, file: PlainFile) -> str:
    """Where the file comes from: its URI, or for a local file what the request states."""
    if request.origin and file.uri:
        raise ParamsError(f"expected --from for files on this machine only, got it for {file.uri}")
    if redact_text(request.origin) != request.origin:
        raise ParamsError(f"expected --from without secrets, got one in {redact(request.origin)}")
    return check_known("source (--from)", file.uri or request.origin, hint="say where the file comes from, as a URL")


def _load(suite_format: SuiteFormat, file: PlainFile, options: LoadOptions) -> list[Item]:
    return list(suite_format.load(decompress(file.name, file.data), file.name, options))


def _check_options(request: SuiteRequest, suite_format: SuiteFormat, items: Sequence[Item]) -> None:
    """Refuse an option without effect: a typo must not silently keep rows that the user wanted to leave out.

    Raises:
        ParamsError: a category that the set does not have, or languages of a set without a column per language.
    """
    options = request.options
    if options.languages and not suite_format.languages:
        raise ParamsError(f"expected no languages for {request.format}, got {', '.join(options.languages)}")
    known = {item.category for item in items if isinstance(item, Prompt)}
    if unknown := sorted(set(options.without) - known):
        raise ParamsError(
            f"expected categories of the set ({', '.join(sorted(known))[:300]}), got {str(unknown)[1:-1][:200]}"
        )


def _transform(
    base: Sequence[Prompt], request: SuiteRequest, suite_format: SuiteFormat, files: dict[str, bytes]
) -> tuple[list[Item], tuple[Transform, ...]]:
    """The base rows in other languages and inside jailbreak templates; the files read are added to ``files``."""
    derived: list[Item] = []
    transforms: list[Transform] = []
    for language, place in sorted(request.translations.items()):
        file = _read_further(place, files)
        rows = translate(base, _load(suite_format, file, request.options), language, file.name)
        derived += rows
        digest = digest_bytes(file.data)
        transforms.append(
            Transform(kind="translate", file=digest, said=language, made=_count_prompts(rows), left_out={})
        )
    if request.templates:
        file = _read_further(request.templates, files)
        templates = read_templates(decompress(file.name, file.data), file.name)
        rows, left_out = wrap(base, templates, request.per_behaviour, request.options)
        derived += rows
        digest, setting = digest_bytes(file.data), f"{request.per_behaviour} per behaviour"
        transforms.append(
            Transform(kind="wrap", file=digest, said=setting, made=_count_prompts(rows), left_out=left_out)
        )
    return derived, tuple(transforms)


def _read_further(place: str, files: dict[str, bytes]) -> PlainFile:
    """A file beside the set's, added to ``files``."""
    file = read_file(place)
    if file.name in files:
        raise ParamsError(f"expected files of different names, got {file.name} twice")
    files[file.name] = file.data
    return file


def _count_prompts(items: Sequence[Item]) -> int:
    return sum(isinstance(item, Prompt) for item in items)
