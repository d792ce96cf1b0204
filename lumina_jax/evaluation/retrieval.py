"""Do samples show what their captions say? Then the nearest true one is that of the same caption.

In: drawn and true pictures or clips, or distances between them. Out: for each drawn one, the index of the nearest true
one, how often it is nearest to its own among a few others, and how much it moves. Nearest by the squared difference of
pixels suits small sets of distinct samples.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.special import comb

from lumina_jax.evaluation.finding import Finding

ALIKE = 8.0
"""Values of a byte, of 255."""
DISTRACTORS = 50
"""True pictures of other captions, among which a drawn one must find its own."""


def pixel_report(
    prompts: Sequence[str],
    drawn: Sequence[UInt8[np.ndarray, "f h w 3"]],
    true: Sequence[UInt8[np.ndarray, "f h w 3"]],
    is_held_out: Bool[np.ndarray, " n"],
) -> Iterator[Finding]:
    """How many samples are nearest to the true one of their prompt: of those trained on, those held out, and all. Of
    several frames also each frame against all frames, and how much samples move."""
    samples, references = np.stack([*drawn]), np.stack([*true])
    yield from match_report(nearest(samples, references), is_held_out)
    if references.shape[1] > 1:
        yield from frame_report(samples, references)


def match_report(
    found: Int[np.ndarray, " n"], is_held_out: Bool[np.ndarray, " n"], key: str = "nearest"
) -> Iterator[Finding]:
    """How many samples found the true one of their prompt: of those trained on, those held out, and all.

    Args:
      key: what the names of the numbers begin with.
    """
    matches = found == np.arange(len(found))
    for name, chosen in (("trained on", ~is_held_out), ("held out", is_held_out), ("all", is_held_out | True)):
        if chosen.any():
            count, share = matches[chosen].sum(), matches[chosen].mean()
            text = f"  {name:<11} {count:4} of {chosen.sum():4} nearest to their own sample: {share:.1%}"
            yield Finding(text, {f"{key}_{name.replace(' ', '_')}": float(share)})


def distractor_report(
    distances: Float[np.ndarray, "n n"], prompts: Sequence[str], is_held_out: Bool[np.ndarray, " n"]
) -> Iterator[Finding]:
    """How often a drawn sample is nearer to its own true one than to each of `DISTRACTORS` others whose prompts end
    alike, as in "red heart, noto style" and "pizza, noto style".

    The share is that of all ways to draw the others from the samples that are evaluated, so that it depends on no seed.
    Nothing is reported if there are too few of them.

    Args:
      distances: of each drawn sample to each true one.
    """
    endings = np.array([prompt.rpartition(",")[2].strip() for prompt in prompts])
    rivals = (endings[:, None] == endings) & ~np.eye(len(endings), dtype=bool)
    nearer = rivals & (distances <= np.diag(distances)[:, None])
    count = rivals.sum(axis=1)
    if count.min() < DISTRACTORS:
        return
    shares = comb(count - nearer.sum(axis=1), DISTRACTORS) / comb(count, DISTRACTORS)
    for name, chosen in (("trained on", ~is_held_out), ("held out", is_held_out)):
        if chosen.any():
            share = shares[chosen].mean()
            text = f"  {name:<11} nearest to their own sample among {DISTRACTORS} others of their style: {share:.1%}"
            yield Finding(text, {f"nearest_among_{DISTRACTORS}_{name.replace(' ', '_')}": float(share)})


def frame_report(drawn: UInt8[np.ndarray, "n f h w 3"], true: UInt8[np.ndarray, "n f h w 3"]) -> Iterator[Finding]:
    """Each frame against all frames, and how much clips move."""
    frames = [clips.reshape(-1, *clips.shape[2:]) for clips in (drawn, true)]
    found = nearest(*frames)
    count, own = true.shape[1], np.arange(len(found))
    own_sample, exact = found // count == own // count, found == own
    alike = own_sample & look_alike(frames[1][found], frames[1])
    yield Finding(
        f"  single frames nearest to one of their own sample: {own_sample.mean():.1%}; to the same frame or one that "
        f"looks like it: {alike.mean():.1%} (to the same frame itself: {exact.mean():.1%})",
        {
            "nearest_frame_of_sample": float(own_sample.mean()),
            "nearest_frame_alike": float(alike.mean()),
            "nearest_frame": float(exact.mean()),
        },
    )
    moving, wanted = motion(drawn), motion(true)
    agreement = np.corrcoef(moving, wanted)[0, 1]
    ratio = np.median(moving / np.maximum(wanted, 1e-9))
    yield Finding(
        f"  motion (mean difference of consecutive frames): {ratio:.2f} times the true one in the median; correlation "
        f"over clips {agreement:.2f}",
        {"motion_ratio": float(ratio), "motion_correlation": float(agreement)},
    )


def nearest(drawn: UInt8[np.ndarray, "n *shape"], true: UInt8[np.ndarray, "m *shape"]) -> Int[np.ndarray, " n"]:
    """For each drawn sample the index of the true one that is nearest by pixels."""
    a = drawn.reshape(len(drawn), -1).astype(np.float64)
    b = true.reshape(len(true), -1).astype(np.float64)
    squared = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return np.argmin(squared, axis=1)


def look_alike(a: UInt8[np.ndarray, "n *shape"], b: UInt8[np.ndarray, "n *shape"]) -> Bool[np.ndarray, " n"]:
    """Whether two pictures can hardly be told apart, as the views of a bottle from two sides: their root mean squared
    difference is at most `ALIKE`."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    return np.sqrt((difference**2).reshape(len(a), -1).mean(axis=1)) <= ALIKE


def motion(clips: UInt8[np.ndarray, "n f h w c"]) -> Float[np.ndarray, " n"]:
    """How much each clip moves: the mean absolute difference of consecutive frames, in values of a byte."""
    return np.abs(np.diff(clips.astype(np.float64), axis=1)).mean(axis=(1, 2, 3, 4))
