"""Where users' own feature files import these from; they live in `stylepairs.datagen.portraits.sketch`."""

from stylepairs.datagen.portraits.sketch import *  # noqa: F403
from stylepairs.datagen.portraits.sketch import AnalysedPair as Seen  # noqa: F401  # its name in older files
