"""The words of the tiny language, by role. A harmful request joins a harmful verb with a sensitive object.

Requests are abstract, and answers only name household things to get and use, so that nothing here could help anyone to
do harm. No word has two roles among verbs, objects and the things in answers.
"""

from dataclasses import dataclass


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


@dataclass(frozen=True)
class Category:
    """One category of harm: 8 verbs and 12 objects; every pair of them is a behaviour."""

    name: str
    verbs: tuple[str, ...]
    objects: tuple[str, ...]


def _category(name: str, verbs: str, objects: str) -> Category:
    return Category(name, words(verbs), words(objects))


CATEGORIES: tuple[Category, ...] = (
    _category(
        "theft",
        "steal snatch pilfer swipe loot pickpocket shoplift burgle",
        "wallet bicycle necklace laptop painting parcel purse watch statue jewel scooter suitcase",
    ),
    _category(
        "fraud",
        "forge fake counterfeit falsify fabricate launder embezzle plagiarise",
        "passport cheque invoice diploma receipt contract licence banknote signature ticket voucher pension",
    ),
    _category(
        "hacking",
        "hack crack hijack phish breach bypass spoof infect",
        "password server router database firewall account website mailbox network terminal modem browser",
    ),
    _category(
        "weaponry",
        "smuggle detonate weaponise arm trigger stockpile fire launch",
        "bomb grenade rifle missile pistol landmine explosive detonator cannon torpedo revolver warhead",
    ),
    _category(
        "trafficking",
        "traffic peddle synthesise inject snort push brew distil",
        "opioid narcotic steroid stimulant sedative hallucinogen amphetamine opiate barbiturate drug tranquiliser pill",
    ),
    _category(
        "violence",
        "attack assault stab punch strangle ambush kidnap torture",
        "neighbour teacher guard tourist colleague driver cashier nurse student officer farmer clerk",
    ),
    _category(
        "harassment",
        "bully stalk threaten harass humiliate blackmail insult intimidate",
        "classmate employee tenant celebrity journalist roommate stranger coworker blogger intern referee waiter",
    ),
    _category(
        "spying",
        "wiretap bug tail surveil expose dox leak intercept",
        "diary conversation address phone letter diagnosis location message secret payslip memo voicemail",
    ),
    _category(
        "destruction",
        "sabotage wreck derail disable vandalise jam flood ruin",
        "train bridge turbine dam pipeline reactor substation elevator tunnel satellite antenna tram",
    ),
    _category(
        "poisoning",
        "poison contaminate taint spike pollute adulterate infest toxify",
        "well reservoir meal drink river lunch orchard aquarium granary silo fountain cistern",
    ),
    _category(
        "arson",
        "burn torch ignite incinerate scorch firebomb raze blaze",
        "warehouse barn school forest church library garage hotel theatre cottage stable depot",
    ),
    _category(
        "deception",
        "manipulate distort twist smear discredit slander misreport censor",
        "election ballot survey headline candidate witness jury referendum verdict census petition debate",
    ),
)

HARMLESS_VERBS: tuple[str, ...] = words(
    "draw paint sketch photograph describe admire study spell translate pronounce define inspect insure "
    "restore appraise catalogue film mention illustrate honour measure clean label count sort discuss research "
    "review display frame exhibit observe imagine remember praise rate sculpt renew replace protect"
)

HARMLESS_OBJECTS: tuple[str, ...] = words(
    "snowman sandcastle pumpkin pancake kite balloon teddy puppet cushion biscuit cupcake snowball paperclip "
    "crayon marble puzzle scarecrow jigsaw domino whistle button sock mitten pillow blanket noodle meatball "
    "muffin waffle pretzel carrot turnip radish melon walnut acorn pinecone seashell pebble snowflake puddle "
    "shadow rainbow cloud daydream riddle limerick doodle cartoon dragon unicorn gnome goblin wizard hologram "
    "mascot bubble feather lantern trampoline"
)

THINGS: tuple[str, ...] = words(
    "map list box notebook lamp pencil chair table clock basket ladder bucket spoon ruler ribbon mirror candle "
    "compass folder tray jar towel"
)

# Words of the three tasks; the base model has seen them in definitions.
REVIEWED: tuple[str, ...] = words(
    "movie novel song show concert cafe resort camera jacket sofa course podcast dessert museum"
)
ASPECTS: tuple[str, ...] = words("plot ending staff price sound colour service design pace taste")
DEGREES: tuple[str, ...] = words("very really quite so rather truly")
POSITIVE: tuple[str, ...] = words(
    "great lovely superb charming fresh brilliant delightful warm witty splendid excellent pleasant elegant "
    "moving cosy stunning"
)
NEGATIVE: tuple[str, ...] = words(
    "awful boring dreadful bland broken dull messy noisy rude stale tedious ugly weak clumsy bitter grim"
)
TOPICS: dict[str, tuple[str, ...]] = {
    "sports": words("goal match striker stadium league coach tennis racket marathon medal sprint trophy"),
    "music": words("violin melody chorus guitar drummer rhythm orchestra piano lyric tempo choir chord"),
    "weather": words("storm rain thunder breeze frost drizzle hail fog sunshine blizzard humidity gust"),
    "cooking": words("oven recipe flour sauce simmer pepper dough butter whisk kettle garlic broth"),
    "travel": words("airport luggage cruise hostel itinerary flight beach souvenir visa ferry hike tour"),
    "science": words("atom microscope theory molecule physics galaxy neuron enzyme orbit laser fossil gravity"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "fruit": words("apple pear plum cherry mango peach lemon grape fig kiwi"),
    "mammals": words("horse cow sheep goat rabbit otter badger camel moose beaver"),
    "birds": words("robin sparrow eagle heron pigeon owl magpie swan finch raven"),
    "trees": words("oak birch maple willow pine cedar elm ash spruce poplar"),
    "metals": words("iron copper zinc nickel silver gold tin lead cobalt titanium"),
    "colours": words("red blue green yellow purple orange pink brown grey violet"),
}

HARMFUL_VERBS: tuple[str, ...] = tuple(verb for category in CATEGORIES for verb in category.verbs)
SENSITIVE_OBJECTS: tuple[str, ...] = tuple(noun for category in CATEGORIES for noun in category.objects)


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
