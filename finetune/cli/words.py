"""What people type who come from other tools: words that mean one of ours, and words that are answered with ours.

The words are those of the examples of diffusers, of sd-scripts, ai-toolkit and OneTrainer; none is shown by `--help`. They are written
with hyphens here and may be typed with underscores.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from finetune.config.precedence import section_model

# Setting -> words that mean exactly it: of commands whose flags are settings.
SETTINGS = {
    "model.base": "pretrained-model-name-or-path pretrained-model model-name-or-path base-model model-name model",
    "model.prediction_type": "prediction-type",
    "model.vae": "pretrained-vae-model-name-or-path pretrained-vae vae-path vae-name-or-path",
    "data.path": "train-data-dir instance-data-dir instance-data-root dataset-name dataset-path data-dir dataset image-dir",
    "data.image_column": "image-column",
    "data.caption_column": "caption-column",
    "data.trigger": "trigger-word",
    "data.prefix": "caption-prefix",
    "data.suffix": "caption-suffix",
    "data.shuffle_tags": "shuffle-caption shuffle-tags",
    "data.keep_tags": "keep-tokens",
    "data.tag_dropout": "caption-tag-dropout-rate",
    "data.wildcards": "enable-wildcard",
    "data.caption_dropout": "caption-dropout-rate proportion-empty-prompts",
    "data.template": "learnable-property",
    "data.resolution": "image-size train-resolution",
    "data.buckets": "enable-bucket",
    "data.bucket_min": "min-bucket-reso",
    "data.bucket_max": "max-bucket-reso",
    "data.bucket_step": "bucket-reso-steps",
    "data.flip": "flip flip-aug random-flip hflip",
    "data.random_crop": "random-crop",
    "data.mask": "mask",
    "data.holdout": "validation-split",
    "subject.class_data": "class-data-dir reg-data-dir",
    "subject.class_count": "num-class-images",
    "subject.class_batch": "sample-batch-size",
    "subject.prior_weight": "prior-loss-weight",
    "method.kind": "peft-type lora-type network-type algo",
    "method.rank": "network-dim network-rank lora-rank",
    "method.alpha": "network-alpha lora-alpha",
    "method.dropout": "lora-dropout",
    "method.targets": "lora-layers target-modules",
    "method.start": "network-weights",
    "method.text_encoder": "train-text-encoder",
    "method.text_encoder_lr": "text-encoder-lr",
    "method.new_tokens": "placeholder-token token-string",
    "method.init_word": "initializer-token init-token",
    "method.vectors": "num-vectors num-vectors-per-token num-new-tokens-per-abstraction",
    "objective.loss": "loss-type",
    "objective.huber_c": "huber-c",
    "objective.huber_schedule": "huber-schedule",
    "objective.density_mean": "logit-mean",
    "objective.density_deviation": "logit-std",
    "objective.density_scale": "mode-scale",
    "objective.noise_offset": "noise-offset",
    "objective.input_perturbation": "input-perturbation",
    "objective.zero_terminal_snr": "zero-terminal-snr",
    "optim.steps": "max-train-steps max-steps train-steps training-steps",
    "optim.batch": "train-batch-size batch-size",
    "optim.accumulate": "gradient-accumulation-steps gradient-accumulation",
    "optim.lr": "learning-rate unet-lr",
    "optim.optimizer": "optimizer-type",
    "optim.schedule": "lr-scheduler",
    "optim.cycles": "lr-num-cycles lr-scheduler-num-cycles",
    "optim.power": "lr-power lr-scheduler-power",
    "optim.warmup": "lr-warmup-steps",
    "optim.weight_decay": "weight-decay adam-weight-decay",
    "optim.max_grad_norm": "max-grad-norm",
    "optim.lora_plus": "loraplus-lr-ratio",
    "optim.ema": "ema-decay",
    "run.out": "output-dir output",
    "run.name": "output-name project-name",
    "run.precision": "mixed-precision",
    "run.checkpoint_every": "checkpointing-steps save-every-n-steps save-every",
    "run.keep": "checkpoints-total-limit",
    "run.sample_prompt": "validation-prompt",
    "run.sample_every": "sample-every-n-steps validation-steps",
    "run.holdout_every": "validate-every-n-steps",
    "run.log_every": "logging-steps",
    "run.save_dtype": "save-precision",
    "run.processes": "num-processes",
}
# Flag of `ft generate` -> words that mean exactly it.
DRAWING = {
    "--base": "pretrained-model-name-or-path base-model model ckpt",
    "--adapter": "lora lora-path lora-weights network-weights",
    "--embedding": "textual-inversion-embeddings embeddings",
    "--vae": "vae-path pretrained-vae-model-name-or-path",
    "--negative": "negative-prompt neg-prompt",
    "--scheduler": "sampler sampling-method sampler-name",
    "--steps": "num-inference-steps inference-steps sample-steps",
    "--guidance": "guidance-scale cfg-scale cfg",
    "--count": "num-images num-images-per-prompt images-per-prompt n-samples",
    "--resolution": "image-size",
    "--batch": "batch-size",
    "--out": "output-dir outdir output",
}
# Words whose meaning is ours in another form -> what to type instead, and why. What to type begins with a flag or a setting.
ANSWERS = {
    "epochs num-train-epochs max-train-epochs num-epochs": ("--steps N", "runs are counted in steps: pictures x epochs / batch"),
    "save-every-n-epochs": ("--checkpoint-every N", "checkpoints are counted in steps"),
    "sample-every-n-epochs validation-epochs": ("--sample-every N", "samples are counted in steps"),
    "lr-warmup-epochs": ("--warmup N", "warmup is counted in steps"),
    "snr-gamma min-snr-gamma min-snr": ("--weighting min-snr", "and --set objective.gamma=5, which is its default"),
    "debiased-estimation-loss debiased-estimation": ("--weighting debiased", ""),
    "weighting-scheme timestep-sampling": ("--set objective.density=logit-normal", "which noise levels are drawn how often"),
    "min-timestep": ("--set objective.t_min=0.1", "a share of all noise levels"),
    "max-timestep": ("--set objective.t_max=0.9", "a share of all noise levels"),
    "offset-noise": ("--set objective.noise_offset=0.1", ""),
    "multires-noise-iterations": ("--set objective.pyramid_levels=6", ""),
    "multires-noise-discount": ("--set objective.pyramid_discount=0.8", ""),
    "ip-noise-gamma": ("--set objective.input_perturbation=0.1", ""),
    "v-parameterization v2": ("--set model.prediction_type=v_prediction", "of a single file; other bases say their own"),
    "revision": ("--base OWNER/NAME@REVISION", "a branch, tag or commit"),
    "instance-prompt": ("--caption TEXT", "one caption for all pictures; of `ft dreambooth` --token sks --class dog"),
    "class-prompt class-prompts": ("--class WORD", "what the subject is one of"),
    "with-prior-preservation": ("--prior-weight 1", "`ft dreambooth` preserves the class unless it is 0"),
    "masked-loss alpha-mask masked-training": ("--set data.mask=alpha", "or =file, from masks beside the pictures"),
    "center-crop": ("--set data.buckets=false", "cuts all square; pictures keep their proportions otherwise"),
    "bucket-no-upscale": ("--set data.enlarge=false", ""),
    "color-aug": ("--set data.colour_jitter=0.1", ""),
    "num-repeats repeats dataset-repeats": ("--set 'data.sources=[{path: imgs, repeats: 10}]'", "of several folders"),
    "use-8bit-adam": ("--optimizer adamw8bit", ""),
    "adam-beta1 adam-beta2 optimizer-args": ("--set optim.betas=[0.9,0.999]", "and --set optim.weight_decay=0.01"),
    "use-ema ema": ("--ema 0.999", "the decay of averaged weights"),
    "use-dora dora": ("--adapter dora", ""),
    "use-rslora rslora": ("--adapter rslora", ""),
    "network-module network-args lycoris-config": ("--adapter lokr", "one of those that --help lists, and --set method.…"),
    "network-dropout rank-dropout module-dropout": ("--set method.dropout=0.1", "of the adapter's input"),
    "scale-weight-norms": ("--set method.max_norm=1", "largest norm of a layer's change"),
    "network-train-unet-only": ("--train-text-encoder", "without it the text encoder of `ft dreambooth` stays as it is"),
    "token-abstraction train-text-encoder-ti": ("--new-token WORD", "learned beside the LoRA"),
    "resume resume-from-checkpoint save-state": ("--out FOLDER", "the same command goes on by itself where it stopped"),
    "sample-prompts validation-prompts": ("--sample-prompt TEXT", "several times for several"),
    "report-to log-with logging-dir": ("--set run.tensorboard=true", "metrics.jsonl is written always"),
    "output-kohya-format": ("--format kohya", ""),
    "save-model-as": ("--format kohya", "adapters are .safetensors always"),
    "config-file config dataset-config": ("--recipe FILE.yaml", "`ft recipe ls` lists those that ship"),
    "lora-scale network-mul adapter-weight": ("--adapter FILE:0.8", "the weight stands behind the file"),
}
# Words for what is done anyway.
NEEDLESS = {
    "xformers sdpa enable-xformers-memory-efficient-attention mem-eff-attn": "PyTorch's own attention is used always",
    "cache-latents cache-latents-to-disk": "pictures are encoded once, and kept",
    "cache-text-encoder-outputs cache-text-encoder-outputs-to-disk": "captions are encoded once, and kept",
    "dataloader-num-workers max-data-loader-n-workers persistent-data-loader-workers": "what is encoded ahead needs no workers to load it",
    "push-to-hub hub-model-id hub-token": "nothing is sent anywhere; `hf upload` does that",
}


def bare_flag(name: str) -> str:
    """A flag without its hyphens in front, in the one way that the tables write it."""
    return name.lstrip("-").replace("_", "-")


def _each(table: Mapping[str, str]) -> dict[str, str]:
    """word -> what it means."""
    out: dict[str, str] = {}
    for ours, words in table.items():
        out |= dict.fromkeys(words.split(), ours)
    return out


def words_of_settings(flags: Mapping[str, str]) -> dict[str, str]:
    """Word -> the flag of a command that means it, or where it has none the setting; `flags` is the command's table."""
    names = {setting: flag for flag, setting in flags.items()}
    return {word: names.get(setting, setting) for word, setting in _each(SETTINGS).items()}


def words_of_drawing() -> dict[str, str]:
    return _each(DRAWING)


def translated(arguments: Sequence[str], known: Iterable[str], words: Mapping[str, str]) -> list[str]:
    """A command's arguments in its own words; `known` are its own flags, which mean what they say."""
    own_flags, out = {bare_flag(flag) for flag in known}, list[str]()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        ours = words.get(bare_flag(name)) if argument.startswith("--") and bare_flag(name) not in own_flags else None
        if argument == "--":
            return [*out, argument, *rest]
        if ours is None:
            out.append(argument)
        elif ours.startswith("--"):
            out.append(ours + equals + value)
        else:
            out += ["--set", f"{ours}={_value(ours, value if equals else None, rest)}"]
    return out


def _value(setting: str, value: str | None, rest: Iterator[str]) -> str:
    """What follows a word, as the YAML of its setting: text stays text, whatever it holds."""
    section, key = setting.split(".")
    annotation = section_model(section).model_fields[key].annotation
    if annotation is bool:
        return value or "true"
    text = next(iter(rest), "") if value is None else value
    return json.dumps([text] if str(annotation).startswith("tuple[") else text, ensure_ascii=False)


def answer(word: str) -> str | None:
    """What to type instead of a word that is none of ours, and why."""
    for words, (ours, why) in ANSWERS.items():
        if bare_flag(word) in words.split():
            return f"here it is {ours}" + (f" ({why})" if why else "")
    for words, why in NEEDLESS.items():
        if bare_flag(word) in words.split():
            return f"leave it out: {why}"
    return None
