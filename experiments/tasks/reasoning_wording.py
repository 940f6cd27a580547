"""How the arithmetic word problems are told, asked and worked out; used by `experiments.tasks.reasoning`."""

from __future__ import annotations

# Pools of whole sentences: `{who}`, `{other}`, `{a}`, `{b}` and `{people}` are names, `{item}` is a kind of thing.
FORMATS = (
    "Question: {facts} {ask}\nAnswer:",
    "Problem: {facts}\n{ask}\nAnswer:",
    "Question: {facts}\n{ask}\nSteps:",
    "Problem: {facts} {ask}\nSolution:",
    "Question: {facts} {ask}\nSolution:",
)
ASIDES = (
    "{who} has {n} {item}.",
    "{who} owns {n} {item}.",
    "{who} sees {n} {item} in a shop.",
    "In a shop there are {n} {item}.",
    "{who} sees a shop with {n} {item}.",
)
ENDINGS = (
    " The answer is {answer} {unit}.",
    " So the answer is {answer} {unit}.",
    " In the end, the answer is {answer} {unit}.",
)

CHAIN_OPENINGS = (
    "{who} has {v} {item}.",
    "At first {who} owns {v} {item}.",
    "{who} starts with {v} {item}.",
    "{v} {item} belong to {who}.",
    "At first {who} has {v} {item}.",
)
PRODUCT_OPENINGS = (
    "{who} has {g} sets of {e} {item}.",
    "{who} owns {g} packs with {e} {item} in each.",
    "{who} starts with {g} rows of {e} {item}.",
    "{who} has {e} {item} in each of {g} packs.",
    "{who} owns {g} sets, each of {e} {item}.",
)
EVENTS = {
    "+": (
        "{other} gives {who} {n} more.",
        "{who} buys {n} more.",
        "Then {who} finds {n} more.",
        "{who} wins {n} in a game.",
        "Then {who} wins another {n}.",
        "{who} gets another {n} from {other}.",
        "{other} brings {n} more to {who}.",
        "Then {n} more are added.",
        "{who} picks up {n} more.",
        "Then {who} gets {n} more from {other}.",
    ),
    "-": (
        "{who} gives {n} to {other}.",
        "{who} loses {n} of them.",
        "Then {who} sells {n}.",
        "{other} takes {n} of them.",
        "Then {who} loses {n} in a game.",
        "{n} of them break.",
        "{who} throws {n} away.",
        "On the way {n} are lost.",
        "{other} buys {n} of them from {who}.",
        "Then {n} of them are lost.",
    ),
    "*": (
        "Then the number grows to {n} times as many.",
        "{who} now makes it {n} times as many.",
        "{who} trades each of them for {n} new ones.",
        "Each of them is turned into {n} new ones.",
        "Then there are {n} times as many.",
    ),
    "/": (
        "{who} makes {n} equal piles and keeps one.",
        "{who} splits them into {n} equal parts and keeps one part.",
        "{n} people share them equally, and {who} is one of them.",
        "{who} keeps one of {n} equal shares.",
        "{who} keeps one of {n} equal piles.",
    ),
}
CHAIN_QUESTIONS = (
    "How many {item} does {who} have now?",
    "How many {item} does {who} have in the end?",
    "What is the final number of {item} of {who}?",
    "In the end, {who} has how many {item}?",
    "What number of {item} does {who} have now?",
)
STARTS = (" {who} starts with {v} {item}.", " Start: {v} {item}.", " At first there are {v} {item}.")
# One free choice of a whole row, not one for every step: who wrote "Added" goes on with "Removed".
LABELS = (
    {"+": "Added", "-": "Removed", "*": "Multiplied", "/": "Divided"},
    {"+": "Gained", "-": "Lost", "*": "Grown", "/": "Shared"},
    {"+": "More", "-": "Less", "*": "Times", "/": "Split"},
)

OWNERS = (
    "{who} has {v} {item}.",
    "{who} owns {v} {item}.",
    "There are {v} {item} with {who}.",
    "{v} {item} belong to {who}.",
    "{who} keeps {v} {item}.",
)
COMPARISONS = (
    "{b} has {n} {much} {than} {a}.",
    "{b} has {n} {much} {item} {than} {a}.",
    "{b} owns {n} {much} {than} {a}.",
    "Compared with {a}, {b} has {n} {much}.",
    "Compared with {a}, {b} owns {n} {much} {item}.",
)
MUCH = {"+": ("more", "than"), "-": ("fewer", "than"), "*": ("times as many", "as")}
COMPARE_QUESTIONS = (
    "How many {item} do {people} have together?",
    "How many {item} do {people} have in all?",
    "Together, {people} have how many {item}?",
    "What number of {item} do {people} have in all?",
    "In all, how many {item} do {people} have?",
)
KNOWN = (" {who} has {v} {item}.", " First, {who} has {v} {item}.", " We know that {who} has {v} {item}.")

GOODS = (
    "{who} buys {n} {item} for {p} dollars each.",
    "{who} takes {n} {item} at {p} dollars each.",
    "The {item} cost {p} dollars each, and {who} buys {n}.",
    "{who} buys {n} {item} that cost {p} dollars each.",
    "{who} takes {n} {item} for {p} dollars each.",
)
SINGLES = (
    "{who} also pays {p} dollars for some {item}.",
    "{who} also buys some {item} for {p} dollars.",
    "Some {item} cost {who} another {p} dollars.",
    "{who} also takes {item} for {p} dollars in all.",
    "{who} also buys {item} for {p} dollars in all.",
)
PURSES = (
    "{who} pays with {m} dollars.",
    "{who} had {m} dollars.",
    "At first {who} has {m} dollars.",
    "{who} came with {m} dollars.",
    "{who} starts with {m} dollars.",
)
CHANGE_QUESTIONS = (
    "How many dollars are left?",
    "How many dollars does {who} have left?",
    "How many dollars does {who} have in the end?",
    "What number of dollars is left?",
    "How many dollars does {who} have now?",
)
COSTS = (" The {item} cost {v} dollars.", " For the {item}: {v} dollars.", " {who} pays {v} dollars for the {item}.")
