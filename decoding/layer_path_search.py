"""Search chains of layers by Monte Carlo tree search (CoLa, arXiv 2507.07996). Pure Python.

A node is a path; the root runs every layer once, in order. A move skips k consecutive layers or
inserts r more copies of k consecutive layers right after them, k and r in 1 to 4. Each simulation
descends from the root by

    UCB(P) = Q(P) / v(P) + c sqrt(ln V / v(P)) - lambda |P| / N

(Q: sum of rewards below P, v: simulations below P, V: simulations so far, |P|: layers in the path,
N: layers of the model) to a path that was never run, runs it, and adds its reward on the way back.

The paper leaves open, and this is ours: c, lambda and the longest path (options); a node that was
never run counts as run once with its parent's mean reward, because an infinite bonus would spend
any usual budget on the root's hundreds of children; a path belongs to the first node that reaches
it, so that every simulation runs a path that is new.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from linearize.errors import UsageError

Path = tuple[int, ...]
SIZES = (1, 2, 3, 4)  # k, and r, of the paper


@dataclass(frozen=True)
class Search:
    """Settings of the search; `search` runs it.

    - `simulations`: paths to run, the plain model included.
    - `exploration`, `length_weight`: c and lambda above.
    - `longest`: most layers in a path; None = 1.5 times the model's, rounded up.
    - `seed`: decides between equal paths, nothing else.
    """

    simulations: int = 200
    exploration: float = 1.4
    length_weight: float = 0.3
    longest: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `UsageError` for a value out of range."""
        limits = {
            "simulations": (self.simulations, 1),
            "exploration": (self.exploration, 0),
            "length_weight": (self.length_weight, 0),
        }
        for name, (value, least) in limits.items():
            if not (value >= least and math.isfinite(value)):
                raise UsageError(f"{name}={value} is out of range; give a number from {least} on")

    def limit(self, layers: int) -> int:
        """Most layers in a path of a model with `layers`. Raises `UsageError` if below them."""
        longest = math.ceil(1.5 * layers) if self.longest is None else self.longest
        if longest < layers:
            raise UsageError(
                f"longest={longest} is below the model's own {layers} layers, where the search "
                f"starts; give {layers} or more"
            )
        return longest


@dataclass
class _Node:
    path: Path
    parent: _Node | None
    visits: int = 0
    total: float = 0.0
    children: list[_Node] = field(default_factory=list)
    open: bool = True  # there is a path below, or here, that was never run

    def mean(self) -> float:
        return self.total / self.visits


def search(
    layers: int, evaluate: Callable[[Path], float], settings: Search | None = None
) -> dict[Path, float]:
    """Path -> reward of every path that was run, in that order; the plain model comes first.

    - `layers`: the model's; `evaluate`: the reward of a path, best in 0 to 1.

    Ends early where the paths within the limit are used up. What `evaluate` raises passes through.
    """
    settings = settings or Search()
    longest = settings.limit(layers)
    choose = random.Random(settings.seed)
    root = _Node(tuple(range(layers)), None)
    seen = {root.path}
    found: dict[Path, float] = {}
    while len(found) < settings.simulations and root.open:
        node = root
        while node.visits:
            node = max(
                (child for child in node.children if child.open),
                key=lambda child: _ucb(child, len(found), layers, settings),
            )
        found[node.path] = reward = evaluate(node.path)
        new = [path for path in moves(node.path, longest) if path not in seen]
        choose.shuffle(new)
        seen.update(new)
        node.children = [_Node(path, node) for path in new]
        _back_up(node, reward)
    return found


def moves(path: Path, longest: int) -> Iterator[Path]:
    """Every path one move away, each once: 1 to `longest` layers."""
    made = {path}
    for k in SIZES:
        for start in range(len(path) - k + 1):
            block, rest = path[start : start + k], path[start + k :]
            for copies in (0, *(r + 1 for r in SIZES)):
                other = path[:start] + block * copies + rest
                if 0 < len(other) <= longest and other not in made:
                    made.add(other)
                    yield other


def front(rewards: Mapping[Path, float]) -> list[Path]:
    """Paths that no other beats in both length and reward, from short to long.

    Of equal ones the first found stays.
    """
    kept: list[Path] = []
    for path in sorted(rewards, key=lambda p: (len(p), -rewards[p])):
        if not kept or rewards[path] > rewards[kept[-1]]:
            kept.append(path)
    return kept


def _ucb(node: _Node, simulations: int, layers: int, settings: Search) -> float:
    mean = node.mean() if node.visits else node.parent.mean()
    bonus = math.sqrt(math.log(simulations) / max(node.visits, 1))
    length = len(node.path) / layers
    return mean + settings.exploration * bonus - settings.length_weight * length


def _back_up(node: _Node | None, reward: float) -> None:
    while node is not None:
        node.visits += 1
        node.total += reward
        node.open = any(child.open for child in node.children)
        node = node.parent
