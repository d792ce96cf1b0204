"""Can a recogniser hear what spoken texts say? It listens for one of a known list of texts.

In: samples of speech. Out: which of the texts was heard. The recogniser is pocketsphinx with its English model, in the
extra `eval`; a grammar of the list of texts is all that it may hear.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from lumina_jax.evaluation.finding import Finding
from lumina_jax.mel import load_librosa

RATE = 16_000
"""Hz that the recogniser listens at."""
SILENCE = 0.2
"""Seconds put before and after what is said."""
PEAK = 0.8


class Recogniser:
    """Hears one of `texts` in a sound.

    Raises:
      ValueError: pocketsphinx is not installed, or does not know a word of the texts.
    """

    def __init__(self, texts: Sequence[str]):
        try:
            from pocketsphinx import Decoder
        except ImportError:
            raise ValueError("recognising speech needs pocketsphinx: pip install 'lumina_jax[eval]'") from None
        words = sorted({word for text in texts for word in text.split()})
        probe = Decoder(samprate=RATE, loglevel="FATAL")
        unknown = [word for word in words if probe.lookup_word(word) is None]
        if unknown:
            raise ValueError(f"the recogniser must know each word, but its dictionary lacks {', '.join(unknown)}")
        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder) / "texts.jsgf"
            grammar.write_text(f"#JSGF V1.0; grammar texts; public <text> = {' | '.join(sorted(set(texts)))};")
            self._decoder = Decoder(samprate=RATE, loglevel="FATAL", jsgf=str(grammar))

    def __call__(self, samples: Float[np.ndarray, " n"], rate: int) -> str:
        """The text heard, or "" for none."""
        heard = load_librosa().resample(np.asarray(samples, np.float32), orig_sr=rate, target_sr=RATE)
        heard = np.pad(heard, round(SILENCE * RATE))
        heard = np.rint(heard * (PEAK * 32767 / max(1e-9, float(np.abs(heard).max())))).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(heard.tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""


class SpeechJudge:
    """Reports which texts a recogniser hears in what was drawn from them, and in a true recording of each.

    Args:
      captions: of all texts that may be heard.
      voice: makes samples of spectrograms at a rate.

    Raises:
      ValueError: as `Recogniser`.
    """

    def __init__(self, captions: Sequence[str], voice: Callable[[np.ndarray, int], np.ndarray], rate: int):
        self._recogniser = Recogniser([spoken_text(caption) for caption in captions])
        self._voice, self._rate = voice, rate

    def __call__(
        self,
        prompts: Sequence[str],
        drawn: Sequence[Float[np.ndarray, "_ 80"]],
        true: Sequence[Float[np.ndarray, "_ 80"]],
        is_held_out: Bool[np.ndarray, " n"],
    ) -> Iterator[Finding]:
        wanted = [spoken_text(prompt) for prompt in prompts]
        for name, spectrograms in (("drawn", drawn), ("recorded", true)):
            heard = [self._recogniser(self._voice(one, self._rate), self._rate) for one in spectrograms]
            wrong = [f"{text} ({other or 'nothing'})" for text, other in zip(wanted, heard) if text != other]
            share = 1 - len(wrong) / len(wanted)
            text = f"  {name:<9} {len(wanted) - len(wrong):4} of {len(wanted):4} heard: {share:.1%}"
            yield Finding(text, {f"heard_{name}": share})
            if wrong:
                yield Finding(f"            not heard: {', '.join(wrong)}")


def spoken_text(caption: str) -> str:
    """What is said for a caption, as the recogniser writes it: words in lower case, without marks.

    >>> spoken_text("[180 Hz] Good morning!")
    'good morning'
    """
    from lumina_jax.encoders.phonemes import split_pitch

    kept = "".join(sign if sign.isalnum() or sign == "'" else " " for sign in split_pitch(caption)[1].lower())
    return " ".join(kept.split())
