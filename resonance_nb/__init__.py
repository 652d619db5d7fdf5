"""Which song is playing in this noisy room? What most people need is here; `resonance_nb.front` says where it lives."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time nothing is imported before it is used
    from .audio import load
    from .catalog import Catalog, Identification, SongMatch
    from .core import Match, ResonanceError, rng_for
    from .decide import Event, Listener
    from .front import feel, identify, listen
    from .fuse import Fused
    from .landmarks import Landmarks
    from .show import player
    from .venue import degrade

__all__ = [
    'Catalog', 'Event', 'Fused', 'Identification', 'Landmarks', 'Listener', 'Match', 'ResonanceError',
    'SongMatch', 'degrade', 'feel', 'identify', 'listen', 'load', 'player', 'rng_for',
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .front import offered

    globals()[name] = thing = offered(name)
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
