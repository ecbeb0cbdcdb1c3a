"""The command `mdssd`: train, eval, detect, data, convert, export, info.

What the subcommands need is imported inside them, so that `mdssd --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mdssd.names import (
    AMP,
    BACKENDS,
    DTYPES,
    EXPORTS,
    MODELS,
    NORMALIZERS,
    RUNTIMES,
    SCHEDULES,
    SUBMISSIONS,
)
from mdssd.version import __version__

if TYPE_CHECKING:
    from mdssd.data import DetectionDataset
    from mdssd.models import SingleShotDetector

INTERRUPTED = 130
# 120k iterations of 32 images on the 16,551 of VOC 07+12 (MDSSD paper, section IV-A).
EPOCHS = 232
# Iterations over which the learning rate rises when no weights are loaded.
WARMUP_FROM_SCRATCH = 100

_DATA_OPTIONS = (
    "data",
    "split",
    "image_dir",
    "classes",
    "scenes",
    "eval_data",
    "eval_image_dir",
    "eval_split",
    "eval_every",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: the process's own); give its exit status.

    0: done. 1: some images could not be used, or `data check` found a fault. 2: wrong arguments
    or input, with one line `mdssd: error: ...` on standard error. 130: interrupted by Ctrl-C.
    143: by SIGTERM.
    """
    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse has printed its help or its complaint
        return int(end.code or 0)
    verbose = getattr(arguments, "traceback", False)
    try:
        return int(arguments.run(arguments))
    except SystemExit as end:  # of SIGTERM, or another process has said why
        if note := getattr(end, "note", ""):
            print(f"mdssd: {note}", file=sys.stderr)
        return int(end.code or 0)
    except KeyboardInterrupt as interrupt:
        # Where code from a string was interrupted, of a dataclass for instance, CPython remembers
        # it as unhandled and would end `python -m mdssd` by the signal. This makes it forget.
        exec("")
        print("; ".join(["mdssd: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if verbose:
            raise
        print(f"mdssd: error: {_one_line(error)}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Of the processes that torchrun starts with the same arguments, one says so.
        first = os.environ.get("RANK", "0") == "0"
        self.exit(2, f"mdssd: error: {message} (see `{self.prog} --help`)\n" if first else None)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command and of all its subcommands."""
    parser = _Parser(
        prog="mdssd", description="Find small objects: train, measure and run SSD and MDSSD."
    )
    parser.add_argument("--version", action="version", version=f"mdssd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    # Only what was given lands in the result, so that --resume can tell it from a default.
    train = commands.add_parser(
        "train", help="train a model", argument_default=argparse.SUPPRESS, description=_TRAIN
    )
    _add_train_options(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="measure a checkpoint on a data set")
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    evaluate.add_argument("--data", help=_DATA)
    evaluate.add_argument("--split", help="of a VOC folder or the scenes (default: test or val)")
    evaluate.add_argument("--image-dir", metavar="DIR", help=_IMAGE_DIR)
    evaluate.add_argument("--scenes", type=_count, metavar="N", help=_SCENES)
    evaluate.add_argument("--out", metavar="DIR", help="folder for evaluation.json and report.html")
    evaluate.add_argument("--submit", choices=SUBMISSIONS, help=_SUBMIT)
    evaluate.add_argument(
        "--similar",
        type=_names,
        action="append",
        metavar="A,B",
        help="classes that are alike, for the breakdown of false positives; may be repeated "
        "(default: VOC's groups for VOC's classes, else none)",
    )
    evaluate.add_argument(
        "--score-threshold",
        type=_fraction,
        default=0.5,
        metavar="S",
        help="of the confusion matrix and of what the report's pictures show (default 0.5)",
    )
    evaluate.add_argument("--batch-size", type=_count, default=8, metavar="N")
    _add_runtime_options(_add_machine_options(evaluate))
    evaluate.set_defaults(run=_eval)

    detect = commands.add_parser("detect", help="find objects in images")
    detect.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    detect.add_argument("images", nargs="+", metavar="IMAGE", help="image, folder or glob pattern")
    detect.add_argument(
        "--out", default="detections", metavar="DIR", help="folder to write to (default detections)"
    )
    detect.add_argument(
        "--score-threshold",
        type=_fraction,
        default=0.5,
        metavar="S",
        help="least score of an object, 0 to 1 (default 0.5)",
    )
    detect.add_argument("--csv", action="store_true", help="write detections.csv as well")
    detect.add_argument("--no-draw", action="store_true", help="draw no pictures")
    detect.add_argument("--batch-size", type=_count, default=8, metavar="N")
    detect.add_argument("--workers", type=_number, metavar="N", help="processes that load images")
    _add_runtime_options(_add_machine_options(detect))
    detect.set_defaults(run=_detect)

    _add_data_commands(commands.add_parser("data", help="look at data: check it, show samples"))
    convert = commands.add_parser("convert", help="make a checkpoint of a published SSD")
    convert.add_argument(
        "source", metavar="SOURCE", help="file of torchvision, ssd.pytorch, lufficc/SSD or Caffe"
    )
    convert.add_argument(
        "--out", required=True, metavar="NAME", help="checkpoint to write: a .json"
    )
    convert.add_argument("--classes", type=_names, metavar="A,B", help="names of labels 1, 2 ...")
    convert.add_argument(
        "--prior-scales",
        choices=("voc", "coco"),
        help="what it was trained with (default: what its code takes for so many classes: coco "
        "for 81, torchvision always coco, ssd.pytorch for all but 21, else voc)",
    )
    convert.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="write a detector for other programs")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    export.add_argument("--out", required=True, metavar="FILE", help="file to write")
    export.add_argument(
        "--format",
        choices=EXPORTS,
        default="onnx",
        help="ONNX (default), torch.export's program, or compiled by AOTInductor",
    )
    export.add_argument(
        "--score-threshold",
        type=_fraction,
        default=0.01,
        metavar="S",
        help="least score of an object, 0 to 1 (default 0.01)",
    )
    export.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    export.set_defaults(run=_export)

    info = commands.add_parser("info", help="versions, backends, devices")
    info.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    info.set_defaults(run=_info)
    return parser


_OnOff = argparse.BooleanOptionalAction
_TRAIN = """Train a detector from scratch, from ImageNet weights or from a checkpoint. Writes
last.json (and best.json where --eval-split is given), their weights, loss.csv and loss.png into the
folder --out. Ctrl-C or a crash leaves the last checkpoint, SIGTERM makes one; --resume goes on from
it. On several GPUs: torchrun --nproc-per-node N -m mdssd train --device cuda ..."""
_DATA = """folder in VOC layout, VOCdevkit (all its years that have the split), or COCO JSON
(default: generated scenes)"""
_SCENES = "how many scenes to generate where there is no --data"
_IMAGE_DIR = "folder of the images of a COCO JSON"
_SUBMIT = """also write into --out what the evaluation server of VOC or COCO takes; the test set
needs no annotations (without them there are no figures)"""
_CHECKPOINT = "its .json or .safetensors, or the folder of a training run"


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--data", help=_DATA)
    data.add_argument("--split", help="of a VOC folder (default: trainval or train)")
    data.add_argument("--image-dir", metavar="DIR", help=_IMAGE_DIR)
    data.add_argument(
        "--classes",
        type=_names,
        metavar="A,B",
        help="class names of a VOC folder, in label order (default: all, sorted)",
    )
    data.add_argument("--scenes", type=_count, metavar="N", help=_SCENES)
    data.add_argument("--eval-data", metavar="PATH", help="data to evaluate on (default --data)")
    data.add_argument("--eval-image-dir", metavar="DIR", help="--image-dir of --eval-data")
    data.add_argument(
        "--eval-split",
        metavar="SPLIT",
        help="evaluate on this split, of a VOC folder or the scenes; keeps the best by VOC07 mAP, "
        "by COCO AP with a COCO JSON",
    )
    data.add_argument("--eval-every", type=_count, metavar="N", help="epochs between (default 10)")

    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=MODELS, help="(default mdssd300)")
    model.add_argument("--width", type=float, help="multiplier of all channels (default 1)")
    model.add_argument("--batch-norm", action=_OnOff, help="for training from scratch")
    model.add_argument(
        "--prior-scales", metavar="NAME", help="voc, coco, small or paper (default voc)"
    )
    model.add_argument("--clip-priors", action=_OnOff, help="clip priors to the image")
    model.add_argument("--truncate-sizes", action=_OnOff, help="whole pixels, as Caffe at 512")
    model.add_argument(
        "--init",
        metavar="FILE",
        help="start from published weights (ImageNet's of VGG16 or ResNet-101, or an SSD's, see "
        "`mdssd convert --help`) or from a checkpoint, of which the tensors that fit by name and "
        "shape are taken",
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--recipe",
        metavar="NAME",
        help="settings of a paper (a model, then -voc or -coco, of DSSD then -stage1 or -stage2) "
        "or of a TOML file; other options take the place of its settings",
    )
    run.add_argument(
        "--print-recipe", action="store_true", help="print all settings as such a file, and end"
    )
    run.add_argument("--out", metavar="DIR", help="folder of the run (default runs/train)")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")
    length = run.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_count, metavar="N", help=f"(default {EPOCHS})")
    length.add_argument("--iterations", type=_count, metavar="N", help="batches instead")
    length.add_argument("--minutes", type=float, metavar="M", help="train for this long instead")
    run.add_argument("--seed", type=int, metavar="N", help="(default 0)")
    run.add_argument("--workers", type=_number, metavar="N", help="processes that load images")
    run.add_argument("--log-every", type=_count, metavar="N", help="iterations (default 10)")
    run.add_argument("--save-every", type=_count, metavar="N", help="epochs (default 1)")
    run.add_argument(
        "--save-iterations", type=_or_none(_count), metavar="N", help="iterations (default: none)"
    )
    run.add_argument(
        "--keep", type=_count, metavar="K", help="the last K checkpoints, step-*.json (default 1)"
    )
    run.add_argument("--no-check-images", action="store_true", help="do not read all images first")
    run.add_argument(
        "--freeze",
        type=_names,
        metavar="PART",
        help="leave as it is: base (trunk and extra layers), batch-norm, or both, with a comma",
    )

    sgd = parser.add_argument_group("optimiser")
    sgd.add_argument(
        "--batch-size", type=_count, metavar="N", help="of all processes together (default 32)"
    )
    sgd.add_argument("--lr", type=float, help="learning rate (default 0.001, meant for batch 32)")
    sgd.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="lr x 0.1 after 1/2 and 5/6 of the run (mdssd), 2/3 and 5/6 (ssd), --drops (steps), "
        "or a cosine (default: the model's own)",
    )
    sgd.add_argument(
        "--drops",
        type=_drops,
        metavar="A,B",
        help="lr x 0.1 after each of these iterations, or fractions of the run",
    )
    sgd.add_argument(
        "--scale-lr",
        action="store_true",
        help="for a --batch-size of k times the recipe's (without one: 32): k times the lr, and a "
        "k-th of the recipe's iterations",
    )
    sgd.add_argument(
        "--warmup",
        type=int,
        metavar="N",
        help=f"iterations of rising lr (default {WARMUP_FROM_SCRATCH}, with --init 0)",
    )
    sgd.add_argument("--momentum", type=float, help="(default 0.9)")
    sgd.add_argument("--weight-decay", type=float, help="(default 0.0005)")
    sgd.add_argument("--bias-lr-factor", type=float, metavar="F", help="times lr (default 2)")
    sgd.add_argument("--bias-weight-decay", type=float, metavar="D", help="(default 0)")
    sgd.add_argument(
        "--clip-gradient", type=_or_none(float), metavar="NORM", help="(default: none, no limit)"
    )
    sgd.add_argument(
        "--ema", type=_or_none(float), metavar="DECAY", help="average the weights, e.g. 0.998"
    )

    speed = parser.add_argument_group("speed and memory")
    speed.add_argument(
        "--amp",
        type=_or_none(str),
        choices=(None, *AMP),
        metavar="TYPE",
        help="compute the network in bf16 or fp16 (default: none, float32)",
    )
    speed.add_argument("--compile", action=_OnOff, help="run the network through torch.compile")
    speed.add_argument(
        "--accumulate", type=_count, metavar="K", help="put a batch through in K parts (default 1)"
    )
    speed.add_argument(
        "--normalizer",
        choices=NORMALIZERS,
        help="divide the loss by the positives of the whole batch (global, the default) or of each "
        "process's share (local, as Caffe does)",
    )
    speed.add_argument("--sync-batch-norm", action=_OnOff, help="over all processes; on GPUs only")

    _add_augmentation_options(parser)
    _add_machine_options(parser)


def _add_augmentation_options(parser: argparse.ArgumentParser) -> None:
    augmentation = parser.add_argument_group("augmentation")
    augmentation.add_argument("--expand", type=float, metavar="MAX", help="1 for none (default 4)")
    augmentation.add_argument("--crop", action=_OnOff)
    augmentation.add_argument(
        "--crop-min-scale", type=float, metavar="S", help="smallest crop, 0 to 1 (default 0.3)"
    )
    augmentation.add_argument("--photometric", action=_OnOff)
    augmentation.add_argument("--mirror", action=_OnOff)
    augmentation.add_argument(
        "--turn", action=_OnOff, help="by quarters: for images from the air, of a microscope"
    )


def _add_data_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = commands.add_parser("check", help="count, compare with the priors, find faults")
    check.description = _CHECK
    _add_data_source(check)
    check.add_argument("--out", metavar="DIR", help="folder for check.json and the plots")
    check.add_argument("--model", choices=MODELS, default="mdssd300", help="(default mdssd300)")
    check.add_argument(
        "--prior-scales",
        metavar="NAME",
        help="voc, coco, small or paper (default: the model's own)",
    )
    check.add_argument("--clip-priors", action="store_true", help="clip priors to the image")
    check.add_argument(
        "--truncate-sizes", action="store_true", help="whole pixels, as Caffe at 512"
    )
    check.add_argument(
        "--tiny",
        type=float,
        default=4.0,
        metavar="PX",
        help="list boxes with a side below this in the input (default 4)",
    )
    check.add_argument("--workers", type=_count, metavar="N", help="threads that read images")
    check.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    check.set_defaults(run=_data_check)

    # Only what was given lands in the result: the rest is left to the augmentation's defaults.
    show = commands.add_parser(
        "show", help="draw augmented samples", argument_default=argparse.SUPPRESS
    )
    show.description = "Draw samples as the network sees them in training, with their boxes."
    _add_data_source(show)
    show.add_argument("--out", metavar="FILE", required=True, help="picture to write (.png)")
    show.add_argument("--count", type=_count, default=16, metavar="N", help="(default 16)")
    show.add_argument("--seed", type=_number, default=0, metavar="N", help="(default 0)")
    show.add_argument("--model", choices=MODELS, default="mdssd300", help="(default mdssd300)")
    show.add_argument("--no-augment", action="store_true", help="only resize, as in a test")
    _add_augmentation_options(show)
    show.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    show.set_defaults(run=_data_show)


_CHECK = """Count what a data set holds, compare its boxes with the priors of a model, read every
image and name each file that cannot be used. Ends with 1 where there is one, or where an image is
in two splits that must be apart."""


def _add_data_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DIR|JSON", help=_DATA)
    parser.add_argument("--split", help="of a VOC folder or the scenes (default: all of a folder)")
    parser.add_argument("--image-dir", metavar="DIR", help=_IMAGE_DIR)
    parser.add_argument("--scenes", type=_count, metavar="N", help=_SCENES)


def _add_machine_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cpu, cuda, cuda:1 ... (default cpu)")
    machine.add_argument("--threads", type=_count, metavar="N", help="of this process on the CPU")
    machine.add_argument("--backend", choices=BACKENDS, help="of all operators (default: fastest)")
    machine.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return machine


def _add_runtime_options(machine: argparse._ArgumentGroup) -> None:
    machine.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="eager",
        help="of the network: PyTorch as it is (default) or compiled, OpenVINO on a CPU, "
        "CUDA graphs on a GPU",
    )
    machine.add_argument("--dtype", choices=DTYPES, help="of the network (default float32)")


def _train(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    out_dir = Path(given.get("out", "runs/train"))
    resume = given.get("resume", False)
    if given.get("print_recipe"):
        return _print_recipe(_resumed_facts(out_dir, given) if resume else _fresh_facts(given))
    with _machine(given, together=True) as device:
        from mdssd.system import distributed
        from mdssd.system.memory import keep_memory
        from mdssd.system.stop import Terminated
        from mdssd.training.folder import check_folder
        from mdssd.training.loop import train

        keep_memory()
        main = distributed.is_main()
        if distributed.from_main(distributed.is_restart(out_dir)):
            resume = _takes_up(out_dir, given)
        if main:
            check_folder(out_dir, resume)
        distributed.wait_for_all()
        facts = _resumed_facts(out_dir, given) if resume else _fresh_facts(given)
        options, recipe, config = facts["arguments"], facts["recipe"], facts["model"]
        size = int(config["model"][-3:])
        dataset = _open(options, train=True, input_size=size, classes=options.get("classes"))
        _check_class_names(options, dataset)
        eval_dataset = None
        if any(name in options for name in ("eval_split", "eval_data", "eval_image_dir")):
            chosen = {
                "data": options.get("eval_data", options.get("data")),
                "split": options.get("eval_split"),
                "image_dir": options.get(
                    "eval_image_dir", None if "eval_data" in options else options.get("image_dir")
                ),
            }
            eval_dataset = _open(chosen, train=False, input_size=size, classes=dataset.classes)
        if main:
            print(dataset.report())
        model = _make_model({**config, "num_classes": len(dataset.classes) + 1}, recipe)
        if "init" in given and not resume:
            line = _initialise(model, given["init"])
            if main:
                print(line)
        elif facts.get("start") and main:
            print(f"the recipe starts from {facts['start']} (--init), this run from nothing")
        again = f"mdssd train --resume --out {out_dir}"
        try:
            state = train(
                model,
                dataset,
                out_dir,
                resume=resume,
                eval_dataset=eval_dataset,
                eval_every=options.get("eval_every", 10),
                device=device,
                workers=given.get("workers"),
                check_images=not given.get("no_check_images", False),
                arguments=options,
                **recipe,
            )
        except KeyboardInterrupt:
            there = (out_dir / "last.json").exists()
            raise KeyboardInterrupt(
                f"go on with: {again}" if there else "no epoch was completed, nothing to resume"
            ) from None
        except Terminated:
            raise Terminated(
                f"terminated after saving {out_dir / 'last.json'}; go on with: {again}"
            ) from None
    if not main:
        return 0
    best = "" if state.best is None else f", best {state.metric} {state.best:.4f} (best.json)"
    print(
        f"{state.step} iterations, {state.epoch} epochs, {state.seconds / 60:.1f} minutes, "
        f"loss {state.loss:.4f}{best}: {out_dir}"
    )
    return 0


def _takes_up(out_dir: Path, given: dict[str, Any]) -> bool:
    """Prepare for what torchrun starts anew; give whether there is a checkpoint to go on from."""
    from mdssd.system import distributed
    from mdssd.training.folder import RUN_FILES

    there = (out_dir / "last.json").exists()
    distributed.wait_for_all()  # all have looked
    if there:
        given.pop("init", None)
    elif distributed.is_main():
        for name in RUN_FILES:
            (out_dir / name).unlink(missing_ok=True)
    return there


def _check_class_names(options: dict[str, Any], dataset: DetectionDataset) -> None:
    wanted = options.get("classes")
    if wanted is not None and wanted != dataset.classes:
        raise ValueError(
            f"--classes: {dataset.name} has its own: {', '.join(dataset.classes)}; "
            f"got {', '.join(wanted)}"
        )


def _fresh_facts(given: dict[str, Any]) -> dict[str, Any]:
    """Data options, recipe and model config of a new run, and what its recipe starts from."""
    from mdssd.training.recipe_files import LENGTHS, START

    recipe, config, file = _chosen(given)
    if not any(name in recipe for name in LENGTHS):
        recipe["epochs"] = EPOCHS
    recipe.setdefault("warmup", 0 if "init" in given else WARMUP_FROM_SCRATCH)
    config.setdefault("model", "mdssd300")
    recipe.setdefault("schedule", "mdssd" if config["model"].startswith("mdssd") else "ssd")
    options = {name: given[name] for name in _DATA_OPTIONS if name in given}
    for name in ("data", "image_dir", "eval_data", "eval_image_dir"):
        if name in options:
            options[name] = str(Path(options[name]).absolute())
    if "recipe" in given:
        options["recipe"] = given["recipe"]
    return {"arguments": options, "recipe": recipe, "model": config, "start": file.get(START)}


def _resumed_facts(out_dir: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The same of the run in `out_dir`, with what was given in place of what it had."""
    from mdssd.training.recipe_files import LENGTHS
    from mdssd.weights.checkpoint import CheckpointError, read_meta

    if "init" in given:
        raise ValueError("--init: a run that is resumed has its weights already")
    path = out_dir / "last.json"
    meta = read_meta(path)
    training = meta["training"]
    if not all(isinstance(training.get(name), dict) for name in ("arguments", "recipe")):
        raise CheckpointError(f"{path}: holds no run to resume")
    chosen, options_of_model, _ = _chosen(given)
    recipe = dict(training["recipe"])
    if any(name in chosen for name in LENGTHS):
        recipe |= dict.fromkeys(LENGTHS)
    recipe |= chosen
    config = {**meta["model"], **options_of_model}
    options = {**training["arguments"]}
    options |= {name: given[name] for name in _DATA_OPTIONS if name in given}
    options.setdefault("classes", meta["classes"])
    return {"arguments": options, "recipe": recipe, "model": config}


def _chosen(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings of the run and options of the model that were chosen, and the recipe's file."""
    from mdssd.training.recipe_files import MODEL_OPTIONS, combine, read_recipe
    from mdssd.training.settings import Recipe

    file = read_recipe(given["recipe"]) if "recipe" in given else {}
    names = (*MODEL_OPTIONS, *Recipe.__dataclass_fields__)
    options = {name: given[name] for name in names if name in given}
    if "scale_lr" in given and "batch_size" not in given:
        raise ValueError("--scale-lr: expected --batch-size beside it, to scale by")
    both = combine(file, options, scale_lr=given.get("scale_lr", False))
    config = {name: both.pop(name) for name in MODEL_OPTIONS if name in both}
    return both, config, file


def _print_recipe(facts: dict[str, Any]) -> int:
    from mdssd.training.recipe_files import format_recipe
    from mdssd.training.settings import Recipe

    print(format_recipe(facts["model"], Recipe(**facts["recipe"])), end="")
    return 0


def _make_model(config: dict[str, Any], recipe: dict[str, Any]) -> SingleShotDetector:
    import torch

    from mdssd.models import build

    torch.manual_seed(recipe.get("seed", 0))
    return build(config)


def _initialise(model: SingleShotDetector, path: str) -> str:
    """Load starting weights; give a line that says what was taken."""
    from mdssd.weights.pretrained import load_pretrained

    loaded = load_pretrained(model, path)
    line = f"{len(loaded.taken)} of {len(model.state_dict())} tensors start from {path}"
    line += f"; the others are new: {_some(loaded.fresh)}" if loaded.fresh else ""
    return line + (f"; not used: {_some(loaded.unused)}" if loaded.unused else "")


def _eval(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    with _machine(given, together=True) as device:
        from mdssd.detection.detector import Detector
        from mdssd.evaluation.evaluate import find_all, measure, write_result
        from mdssd.metrics import similar_labels
        from mdssd.system import distributed
        from mdssd.system.memory import keep_memory

        if arguments.submit and not arguments.out:
            raise ValueError("--submit: needs --out, the folder to write to")
        main = distributed.is_main()
        keep_memory()
        detector = Detector.from_checkpoint(
            arguments.checkpoint, device=device, **_detector_options(arguments)
        )
        similar_labels(detector.classes, arguments.similar)  # before the long part
        dataset = _open(
            given,
            train=False,
            input_size=detector.input_size,
            classes=detector.classes,
            unlabelled=bool(arguments.submit),
        )
        if arguments.submit and dataset.submission != arguments.submit:
            raise ValueError(
                f"--submit {arguments.submit}: {dataset.name} is not data of this layout"
            )
        if main and arguments.out:  # an error here should not come at the end
            Path(arguments.out).mkdir(parents=True, exist_ok=True)
        found = find_all(detector, dataset, batch_size=arguments.batch_size)
    if not main:
        return 0
    if arguments.submit:
        from mdssd.evaluation.submission import write_submission

        paths = write_submission(arguments.out, dataset, found.detections, detector.classes)
        print("written: " + _some([str(path) for path in paths]))
    if not dataset.labelled:
        print(f"{dataset.name} has images without an annotation, so no figures")
        return 0
    result = measure(
        found,
        dataset,
        detector.classes,
        similar=arguments.similar,
        score_threshold=arguments.score_threshold,
    )
    print(result.table())
    if arguments.out:
        write_result(result, found, dataset, arguments.out)
        print(f"written: {Path(arguments.out) / 'evaluation.json'} and report.html beside it")
    return 0


def _detect(arguments: argparse.Namespace) -> int:
    with _machine(vars(arguments)) as device:
        from mdssd.detection.detector import Detector
        from mdssd.detection.files import detect
        from mdssd.system.memory import keep_memory

        keep_memory()
        detector = Detector.from_checkpoint(
            arguments.checkpoint, device=device, **_detector_options(arguments)
        )
        report = detect(
            detector,
            arguments.images,
            arguments.out,
            score_threshold=arguments.score_threshold,
            draw=not arguments.no_draw,
            formats=("json", "csv") if arguments.csv else ("json",),
            workers=arguments.workers,
            keep_images=False,
        )
    print(report.table(failures=False))  # they were printed when they happened
    return 1 if report.failed else 0


def _data_check(arguments: argparse.Namespace) -> int:
    from mdssd.inspection.check import check_data
    from mdssd.inspection.plots import write_check
    from mdssd.models import build
    from mdssd.models.options import PRIOR_OPTIONS

    size = _input_size(arguments.model)
    config: dict[str, Any] = {"model": arguments.model, "num_classes": 2, "width": 0.01}
    for name in PRIOR_OPTIONS:
        if value := getattr(arguments, name):
            config[name] = value
    model = build(config)  # its width does not matter to the priors
    others = {}
    for scales in ("voc", "coco", "small"):
        if scales != model.options.prior_scales:
            with suppress(ValueError):  # this model does not have them
                others[scales] = build({**config, "prior_scales": scales}).priors
    faults: list[str] = []
    check = check_data(
        _open_whole(vars(arguments), size, faults),
        model.priors,
        size,
        model=f"{model.name} ({model.options.prior_scales})",
        others_cxcywh=others,
        faults=faults,
        tiny=arguments.tiny,
        workers=arguments.workers,
    )
    print(check.text())
    if arguments.out:
        print(f"written: {', '.join(map(str, write_check(check, arguments.out)))}")
    return 1 if check.broken else 0


def _data_show(arguments: argparse.Namespace) -> int:
    from mdssd.data import Augmentation
    from mdssd.inspection.plots import contact_sheet, write_png

    given = vars(arguments)
    out, size = Path(arguments.out), _input_size(arguments.model)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a name that ends with .png, got {arguments.out!r}")
    names = ("expand", "photometric", "crop", "crop_min_scale", "mirror", "turn")
    options = {name: given[name] for name in names if name in given}
    if "no_augment" in given:
        if options:
            raise ValueError("--no-augment: goes with no other option of the augmentation")
        options = {"expand": 1.0, "photometric": False, "crop": False, "mirror": False}
    dataset = _open_whole(given, size, None)
    augmentation = Augmentation(size, **options)
    sheet = contact_sheet(dataset, augmentation, arguments.count, arguments.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_png(sheet, out)
    print(f"written: {out}, {arguments.count} samples of {dataset.name}")
    return 0


def _input_size(model: str) -> int:
    from mdssd.models.build import INPUT_SIZES

    return INPUT_SIZES[model]


def _open_whole(
    options: dict[str, Any], input_size: int, faults: list[str] | None
) -> DetectionDataset:
    """As `_open`, but all of a VOC folder where no split is named."""
    path = options.get("data")
    if "split" not in options or options["split"] is None:
        options = {**options, "split": "all" if path and Path(path).is_dir() else None}
    return _open(options, train=True, input_size=input_size, classes=None, faults=faults)


def _detector_options(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {
        "batch_size": arguments.batch_size,
        "runtime": arguments.runtime,
        "dtype": getattr(torch, arguments.dtype) if arguments.dtype else None,
    }


def _convert(arguments: argparse.Namespace) -> int:
    from mdssd.weights.convert import convert, json_path

    found = convert(
        arguments.source,
        arguments.out,
        classes=arguments.classes,
        prior_scales=arguments.prior_scales,
    )
    assert found.config is not None
    print(
        f"{found.layout}: {found.config['model']}, {found.config['num_classes']} classes with "
        f"background, prior scales {found.config['prior_scales']}: "
        f"{json_path(arguments.out)}"
    )
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from mdssd.detection.export import export
    from mdssd.weights.checkpoint import load_checkpoint

    model, meta = load_checkpoint(arguments.checkpoint)
    export(
        model,
        arguments.out,
        form=arguments.format,
        classes=meta["classes"],
        mean=meta["mean"],
        score_threshold=arguments.score_threshold,
    )
    print(f"written: {arguments.out}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from mdssd.info import info

    print(info())
    return 0


@contextmanager
def _machine(given: dict[str, Any], together: bool = False) -> Iterator[str]:
    """Set the threads and the backend of the operators; gives the device.

    together: whether the processes that torchrun starts share the work.
    """
    import torch

    from mdssd import ops
    from mdssd.system.distributed import process_group

    if given.get("threads"):
        torch.set_num_threads(given["threads"])
    device = given.get("device") or "cpu"
    _check_device(device)
    with (
        process_group(device) if together else nullcontext(device) as device,
        ops.backend(given["backend"]) if given.get("backend") else nullcontext(),
    ):
        yield device


def _check_device(name: str) -> None:
    import torch

    try:
        kind = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected cpu, cuda, cuda:1 ..., got {name!r}") from None
    if kind.type == "cpu":
        return
    module = getattr(torch, kind.type, None)
    count = module.device_count() if module is not None and module.is_available() else 0
    if (kind.index or 0) >= count:
        there = f"{count} there" if count else f"this PyTorch ({torch.__version__}) finds none"
        raise ValueError(f"--device: {name}: no such device, {there}")


def _open(
    options: dict[str, Any],
    *,
    train: bool,
    input_size: int,
    classes: Sequence[str] | None,
    unlabelled: bool = False,
    faults: list[str] | None = None,
) -> DetectionDataset:
    """The data set that the options data, split, image_dir and scenes describe."""
    from mdssd.data import open_dataset

    path = options.get("data")
    if path is not None and options.get("scenes"):
        raise ValueError("--scenes: there is --data, so no scenes are generated")
    # The class names of other kinds of data are their own; they are compared by name later.
    named = path is not None and Path(path).is_dir()
    return open_dataset(
        path,
        options.get("split"),
        train=train,
        classes=classes if named else None,
        image_dir=options.get("image_dir"),
        image_size=input_size,
        count=options.get("scenes"),
        unlabelled=unlabelled,
        faults=faults,
    )


def _count(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return value


def _number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _drops(text: str) -> list[float]:
    try:
        return [int(part) if part.isdigit() else float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected iterations or fractions as in 60000,100000 or 0.5,0.8; got {text!r}"
        ) from None


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option that "none" turns off, where a recipe turns it on."""

    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    parse.__name__ = kind.__name__  # argparse's messages tell it
    return parse


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"expected distinct names as in a,b,c; got {text!r}")
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
