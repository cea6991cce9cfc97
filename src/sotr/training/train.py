"""`sotr train`: from a data folder to a model folder."""

import shlex
from contextlib import nullcontext

import torch
from rich.console import Console

from sotr.curation.advice import mirroring
from sotr.curation.checks import verify
from sotr.data.batches import WORKER_DIED, died
from sotr.data.coco import find_data
from sotr.errors import SOTRError
from sotr.files import claimed
from sotr.model.segmenter import choose_device
from sotr.moved import renamed
from sotr.training import settings
from sotr.training.arguments import Means, RunArguments
from sotr.training.checkpoints import has_checkpoint
from sotr.training.devices import Devices
from sotr.training.recipe import Recipe
from sotr.training.replay import ReplayedStep
from sotr.training.replay import replay as replay_step
from sotr.training.work import TrainingSummary, Work


@renamed("max_dets", "max_objects")
def train(
    data: str | None = None,
    model: str = "sotr-r50",
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    suggest: bool = True,
    backbone_weights: str | None = None,
    offline: bool = False,
    early_stop: int | None = None,
    max_time: str | None = None,
    out: str | None = None,
    resume: bool = False,
    finish: bool = False,
    replay: str | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    compile: bool = False,
    logger: str | None = None,
    workers: int = 2,
    max_objects: int = 100,
    train_json: str | None = None,
    val_json: str | None = None,
    images: str | None = None,
    quiet: bool = False,
    normalize: bool = False,
) -> TrainingSummary | ReplayedStep:
    """Train a model on COCO-format data; the best weights end up in OUT/model.

    Ctrl-C or SIGTERM saves everything first; with --resume the run continues as if nothing had happened.

    Args:
        data: Folder of the data set, in any of the layouts that `sotr.data.find_data` knows. --resume and --finish
            know it from the run in `out`.
        model: What to train: a preset (sotr-r50, sotr-r101, sotr-rt-r50, sotr-nano) with random weights; a model
            folder, whose weights are the start; or a YAML or JSON file of SOTRConfig's settings.
        recipe: How to train: paper, finetune, pretrained or scratch, or a YAML file of Recipe's settings. Default:
            finetune for a trained model, pretrained for a backbone with weights, scratch for random weights.
        epochs: Passes over the training images, instead of the recipe's length.
        batch_size: Images per step over all devices, instead of the recipe's.
        lr: Learning rate, instead of the recipe's.
        image_size: Shortest edge of an image in pixels, instead of the model's.
        suggest: Let a preset's image size, scale ranges and grids follow from the data, and the batch size from
            their number and the memory there is; what changes is said, and image_size, batch_size and a recipe of your
            own win.
        backbone_weights: First weights of the backbone alone: imagenet, which timm fetches once from the Hugging Face
            hub; a .safetensors or PyTorch file of a timm model; or none. Default: imagenet for an architecture without
            weights, unless a recipe is named; random weights, and a line that says so, where they cannot be had.
        offline: Use the network for nothing; first weights come from the cache, if they are there.
        early_stop: End after this many validations without a better AP, instead of the recipe's number; 0 is never.
        max_time: End when the run has taken this long, all its parts together, such as 90m, 8h or 1h30m; the learning
            rate comes down in that time. The last validation follows.
        out: Folder of the run; default runs/DATA-MODEL-1, -2 and so on.
        resume: Continue the run in `out`, or without it the newest run of this data. Settings that are not given are
            the run's own.
        finish: Train no further, but make the model folder of the run in `out` from its best weights so far; it can
            still be resumed.
        replay: Do the step again whose loss was not finite, from the folder that the failed run has written, and tell
            where it first went wrong; nothing else is done.
        seed: Of the random weights, the order of the images and their augmentation.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: Devices of that kind on each machine, with a process each.
        nodes: Machines; start the command on each with torchrun or srun.
        strategy: ddp, where each device has all weights; fsdp, where CUDA devices share them out; or auto.
        compile: Compile the network with torch.compile: a slow start, faster steps.
        logger: Show curves and images in a tracking service too: wandb or mlflow.
        workers: Processes per device that load images; 0 loads them in the main process.
        max_objects: Objects per image that validation and the saved model allow; raise it for crowded images. COCO's
            name for it, max_dets, is taken too.
        train_json: Annotation file to train on, if `data` has another layout.
        val_json: Annotation file to validate on, if `data` has another layout.
        images: Folder of the images, if `data` has another layout.
        quiet: Print nothing but errors.
        normalize: Make the 1st and the 99.8th percentile of each image black and white before anything else, here and
            wherever the model is used: for microscopy, whose brightness differs from image to image.

    Raises:
        SOTRError: something in the input cannot be used, or the loss became infinite or not a number.
        TrainingInterrupted: after Ctrl-C or SIGTERM.
    """
    if replay is not None:
        return replay_step(replay, device, Console(quiet=quiet, soft_wrap=True, highlight=False, markup=False))
    given = RunArguments(
        model=model,
        backbone_weights=backbone_weights,
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        image_size=image_size,
        suggest=suggest,
        early_stop=early_stop,
        max_time=max_time,
        seed=seed,
        max_dets=max_objects,
        train_json=train_json,
        val_json=val_json,
        images=images,
        normalize=normalize,
    )
    means = Means(device, devices, nodes, strategy, compile, logger, workers)
    used = Devices(choose_device(device), devices, nodes, strategy)
    used.check_launcher()
    console = Console(stderr=True, quiet=quiet or not used.main, soft_wrap=True, highlight=False, markup=False)
    if used.total > 1 and out is None:
        raise SOTRError("several devices must agree on the folder of the run; name it with --out")
    continued = resume or finish
    if continued:
        folder, run, arguments = settings.existing_run(out, data, given)
        data = data if data is not None else run["data"]["folder"]
    elif data is None:
        raise SOTRError("there is nothing to train on; give the folder of a data set")
    else:
        folder, run, arguments = settings.new_folder(out, data, model, used.main), {}, given

    train_data, val_data = find_data(
        data, train_json=arguments.train_json, val_json=arguments.val_json, images=arguments.images
    )
    if train_data is None or not len(train_data):
        raise SOTRError(f"{data} has no training images; name their annotations with --train-json")
    if val_data is not None and not len(val_data):
        val_data = None
    splits = {"train": train_data} if val_data is None else {"train": train_data, "val": val_data}
    first_weights = None
    if continued:
        settings.check_same_data(folder, run, train_data, val_data)
        if resume:
            settings.check_same_sharing(folder, run, used)
    else:
        arguments = settings.with_start(arguments, train_data, offline, console)
        run = settings.new_run(folder, data, arguments, means, train_data, val_data, used)
        for reason in run["advice"]:
            console.print(f"suggested by the data, and taken (--no-suggest would not): {reason}")
        if Recipe.from_dict(run["recipe"]).augmentation.mirrors and (reason := mirroring(train_data.class_names)):
            console.print(f"suggested by the data, but not taken: {reason}")
        first_weights = settings.first_weights(run, train_data, console)
    if not finish:
        # A resumed run keeps its precision, whatever "auto" would choose on this machine.
        precision = run["precision"] if resume else _precision(run["recipe"]["precision"], used.device)
        run |= settings.surroundings(used, precision)

    work = Work(folder, run, train_data, val_data, used, workers, compile, logger, console)
    try:
        with claimed(folder) if used.main else nullcontext():
            if used.main and not continued:
                settings.refuse_used(folder)
            if used.first_of_node:  # the others of a machine would open the same files
                verify(splits, work.config, console)
            return work.finish(work.keeper_of_checkpoint() if finish else work.fit(first_weights))
    except WORKER_DIED as error:
        if (reason := died(error)) is None:
            raise
        raise SOTRError(
            f"a process that loads validation images died ({reason}); look at the machine's free memory, use fewer "
            f"--workers, then: {shlex.join(['sotr', 'train', '--out', str(folder), '--finish'])}"
        ) from error
    except OSError as error:
        then = "then continue with --resume" if has_checkpoint(folder) else "or name another folder with --out"
        raise SOTRError(
            f"the run in {folder} cannot go on: {error}; make room or mend the permissions, {then}"
        ) from error


def _precision(wish: str, device: torch.device) -> str:
    if wish != "auto":
        return wish
    in_hardware = False
    if device.type == "cuda":
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        in_hardware = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bf16-mixed" if in_hardware else "32-true"
