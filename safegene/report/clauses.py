"""Clauses of laws and standards, and the fields of a record that are evidence for each.

A mapping is a pointer for a reader, not a legal opinion: whether a clause applies, and whether the evidence is enough,
is for the reader to decide. Subjects are in our own words; read the clause itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clause:
    """A clause.

    Attributes:
        number: as the text numbers it.
        subject: what it asks about, in a few words.
        fields: fields of the record that are evidence for it, see `safegene.ledger.record.FIELDS`; ``history`` (every
            attempt on the target, refused ones too) and ``signatures`` (the signed chain) come from the ledger.
        outside: what it also asks about and no record of this project holds; empty for nothing.
    """

    number: str
    subject: str
    fields: tuple[str, ...]
    outside: str = ""


@dataclass(frozen=True)
class Instrument:
    """A law or standard: a short name, its title, what to know of its dates and scope, and its clauses."""

    short: str
    title: str
    note: str
    clauses: tuple[Clause, ...]


ANNEX_IV = Instrument(
    "AI Act, Annex IV",
    "EU AI Act (Regulation 2024/1689), Annex IV: technical documentation",
    "The duties for high-risk systems are reported as moved to December 2027. Whether a system is one, and from when "
    "a duty applies, is not decided here.",
    (
        Clause(
            "1",
            "general description: purpose, versions, what it interacts with",
            ("model", "base", "use", "change", "code"),
            "the system around the model: hardware, user interface, instructions for use",
        ),
        Clause(
            "2(a)-(c)",
            "development: methods, design choices, architecture, computing resources",
            ("base", "vector", "compute", "code"),
            "how the base model was trained",
        ),
        Clause("2(d)", "data: provenance, scope, characteristics, selection", ("datasets",), "data of the base model"),
        Clause("2(e)", "human oversight", ("responsible", "approval"), "oversight while the system is in use"),
        Clause("2(f)", "changes that are planned in advance", ("change", "policy")),
        Clause(
            "2(g)",
            "validation and testing: data, metrics, results, logs, signatures",
            ("suite", "judge", "rates", "verdict", "replies", "responsible", "signatures"),
        ),
        Clause("2(h)", "cybersecurity measures", ("security", "signatures"), "security of the deployment"),
        Clause(
            "3",
            "monitoring, functioning and control: capabilities, limits, foreseeable risks",
            ("rates", "use", "risks", "incident", "history"),
            "accuracy for the persons concerned",
        ),
        Clause("4", "why the performance metrics fit", ("policy", "suite", "judge")),
        Clause("5", "risk management", ("risks", "policy", "verdict"), "the organisation's risk management system"),
        Clause("6", "changes through the lifecycle", ("change", "channel", "chain", "history")),
    ),
)
ARTICLES = Instrument(
    "AI Act, Article",
    "EU AI Act, articles",
    "Articles 9 to 19 and 26, 72 and 73 concern high-risk systems, whose duties "
    "are reported as moved to December 2027. Article 53 concerns providers of general-purpose models.",
    (
        Clause("9", "risk management", ("risks", "policy", "verdict", "rates"), "the organisation's process"),
        Clause("10", "data and data governance", ("datasets", "suite"), "data of the base model"),
        Clause("11", "technical documentation, see Annex IV", ("model", "base", "vector", "rates", "verdict")),
        Clause("12", "automatic recording of events", ("run", "history", "signatures"), "logs of the system in use"),
        Clause("13", "transparency towards deployers", ("use", "rates", "judge"), "instructions for use"),
        Clause("14", "human oversight", ("responsible", "approval"), "oversight while the system is in use"),
        Clause("15", "accuracy, robustness and cybersecurity", ("rates", "suite", "judge", "security")),
        Clause(
            "17", "quality management", ("policy", "approval", "change", "history"), "the quality management system"
        ),
        Clause("18", "documentation is kept for ten years", ("retention", "signatures")),
        Clause("19 and 26(6)", "logs are kept for at least six months", ("retention", "run", "history")),
        Clause("53", "documentation of general-purpose models, see Annex XI", ("model", "base", "compute", "use")),
        Clause("72", "monitoring after placing on the market", ("channel", "history", "incident"), "the plan for it"),
        Clause("73", "serious incidents", ("incident", "history"), "reports to authorities"),
    ),
)
ANNEX_XI = Instrument(
    "AI Act, Annex XI",
    "EU AI Act, Annex XI: general-purpose AI models",
    "Whether a repaired fine-tune is a general-purpose model, and who its provider is, is not decided here.",
    (
        Clause("section 1, 1(a)-(c)", "tasks, acceptable use, release", ("use", "channel"), "acceptable use policy"),
        Clause("section 1, 1(d)-(f)", "architecture, parameters, modality, licence", ("model", "base")),
        Clause("section 1, 2(a)-(b)", "means, design, training process", ("vector", "code", "policy")),
        Clause("section 1, 2(c)", "data: type, provenance, number, selection", ("datasets",), "data of the base model"),
        Clause("section 1, 2(d)", "computing resources of the training", ("compute",), "those of the base model"),
        Clause("section 1, 2(e)", "energy consumption", ("compute",), "measured energy"),
        Clause(
            "section 2, 1", "evaluation: strategy, criteria, results, limits", ("suite", "judge", "rates", "policy")
        ),
        Clause("section 2, 2", "adversarial testing and adaptations", ("suite", "rates", "vector"), "red teams"),
        Clause("section 2, 3", "system architecture", (), "how components of the system fit together"),
    ),
)
NIST = Instrument(
    "NIST AI 600-1",
    "NIST AI 600-1, Generative AI Profile",
    "Voluntary. The numbers are those of the subcategories of the AI Risk Management Framework.",
    (
        Clause("GV-1.2, GV-1.3", "policies and risk tolerance are fixed", ("policy",)),
        Clause("GV-1.6", "inventory of systems", ("model", "base", "channel")),
        Clause("GV-2.1, GV-3.2", "roles and responsibilities", ("responsible", "approval")),
        Clause("GV-4.3", "tests and incidents are shared", ("verdict", "incident", "history")),
        Clause("GV-6.1", "risks of third parties", ("base", "datasets"), "contracts and rights"),
        Clause("MP-2.2, MP-2.3", "limits and evaluation are documented", ("use", "suite", "judge")),
        Clause("MP-4.1", "third-party data and models are mapped", ("datasets", "base"), "rights in the data"),
        Clause("MS-1.1", "metrics fit the risks", ("policy", "suite", "risks")),
        Clause("MS-2.3, MS-2.5", "performance and validity are measured", ("rates", "judge", "suite")),
        Clause("MS-2.6", "safety: harmful output is measured and bounded", ("rates", "verdict", "policy")),
        Clause("MS-2.7", "security and resilience: jailbreaks", ("rates", "suite", "security")),
        Clause("MS-2.8", "transparency and accountability", ("signatures", "responsible", "code")),
        Clause("MG-2.4", "systems can be superseded and deactivated", ("channel", "history")),
        Clause("MG-3.1, MG-3.2", "fine-tuned third-party models are monitored", ("base", "rates", "history")),
        Clause("MG-4.1, MG-4.3", "monitoring and incidents after deployment", ("incident", "history"), "operation"),
    ),
)
ISO = Instrument(
    "ISO/IEC 42001",
    "ISO/IEC 42001, Annex A",
    "Controls of a management system; a certificate is about the organisation, not about a record.",
    (
        Clause("A.6.2.2", "requirements", ("policy", "use")),
        Clause("A.6.2.3", "design and development", ("vector", "base", "code", "change")),
        Clause("A.6.2.4", "verification and validation", ("suite", "judge", "rates", "verdict", "replies")),
        Clause("A.6.2.5", "deployment", ("channel", "approval", "verdict")),
        Clause("A.6.2.6", "operation and monitoring", ("history", "incident"), "monitoring in operation"),
        Clause("A.6.2.7", "technical documentation", ("model", "base", "vector", "datasets", "rates")),
        Clause("A.6.2.8", "event logs", ("run", "history", "signatures")),
        Clause("A.7.5", "data provenance", ("datasets",), "data of the base model"),
    ),
)
COLORADO = Instrument(
    "Colorado SB 26-189",
    "Colorado SB 26-189, automated decision-making technology",
    "From 1 January 2027, for technology that materially influences consequential decisions; rules of the Attorney "
    "General may add to it. Whether a use is one is not decided here.",
    (
        Clause("developer documentation", "intended and inappropriate uses", ("use",)),
        Clause("developer documentation", "categories of training data", ("datasets",), "data of the base model"),
        Clause("developer documentation", "known limits", ("use", "rates", "risks")),
        Clause("developer documentation", "use, monitoring and human review", ("approval",), "instructions"),
        Clause("material updates", "deployers are told of them", ("change", "history"), "the notice itself"),
        Clause("records", "kept for at least three years", ("retention", "signatures", "history")),
        Clause("notices and consumers' rights", "duties of deployers", (), "notices, corrections, human review"),
    ),
)
CALIFORNIA = Instrument(
    "California SB 53",
    "California SB 53, Transparency in Frontier Artificial Intelligence Act",
    "For developers of frontier models (trained with more than 10^26 operations, those of later fine-tuning included). "
    "Whether a developer is one is not decided here.",
    (
        Clause("22757.12(a)", "frontier AI framework", ("policy", "risks", "security"), "the published framework"),
        Clause(
            "22757.12(c)",
            "transparency report before a new or substantially modified model",
            ("model", "use", "rates", "change"),
            "website, contact, languages",
        ),
        Clause("22757.11", "compute, with that of fine-tuning", ("compute",), "that of the base model"),
        Clause("22757.13", "critical safety incidents", ("incident", "history"), "reports to the state"),
    ),
)
INSTRUMENTS = (ANNEX_IV, ARTICLES, ANNEX_XI, NIST, ISO, COLORADO, CALIFORNIA)
