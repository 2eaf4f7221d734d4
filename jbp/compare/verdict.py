"""What a comparison says, as one of four."""

import enum


class Verdict(enum.Enum):
    """Of a leaf, and of a report; the value is what it means."""

    AGREE = "all that was compared agrees"
    WRONG = "something is wrong"
    UNDECIDED = "nothing is wrong, and something could not be decided"
    EMPTY = "nothing was compared: there is nothing, or all of it is 0"
