"""`optimum-cli quanto quantize`. Imported at every start of `optimum-cli`: torch and transformers wait for `run`."""

from argparse import ArgumentParser
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


_WEIGHTS = ("int2", "int4", "int8", "float8")
_LIBRARIES = ("transformers",)
_DTYPES = {"auto": "auto", "fp16": "float16", "bf16": "bfloat16"}


class QuantizeCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Quantizes the weights of a transformers model and saves it as `QuantizedTransformersModel` does."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        required = parser.add_argument_group("Required arguments")
        required.add_argument("output", help="The path to save the quantized model.")
        required.add_argument(
            "-m", "--model", required=True, help="Hugging Face Hub model id or path to a local model."
        )
        required.add_argument("--weights", default="int8", choices=_WEIGHTS, help="The type of the quantized weights.")
        optional = parser.add_argument_group("Optional arguments")
        optional.add_argument("--revision", help="The Hugging Face model revision.")
        optional.add_argument(
            "--trust_remote_code", action="store_true", help="Trust remote code when loading the model."
        )
        optional.add_argument("--library", choices=_LIBRARIES, help="The library to load the model with.")
        optional.add_argument(
            "--task", help="The model task, such as text-generation. By default the model is loaded as it was saved."
        )
        optional.add_argument(
            "--torch_dtype", default="auto", choices=_DTYPES, help="The torch dtype to load the model weights in."
        )
        optional.add_argument("--device", default="cpu", help="The device to quantize the model on.")

    def run(self) -> None:
        from ..models.transformers_models import QuantizedTransformersModel

        args: Any = self.args
        hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
        model_class = _model_class(args.model, args.task, **hub)
        model = model_class.from_pretrained(args.model, dtype=_DTYPES[args.torch_dtype], **hub).to(args.device)
        QuantizedTransformersModel.quantize(model, weights=f"q{args.weights}").save_pretrained(args.output)


def _model_class(name: str, task: str | None, **hub: Any) -> Any:
    """The class to load a model with: that of the task, or the one that the model was saved with."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(name, **hub)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"[quantize] model: got {name}, which is quantized, expected a float one")
    if task is not None:
        from optimum.exporters.tasks import TasksManager

        return TasksManager.get_model_class_for_task(task, framework="pt", model_type=config.model_type)
    architectures = getattr(config, "architectures", None) or ["none"]
    found = getattr(transformers, architectures[0], None)
    if found is None:
        raise ValueError(
            f"[quantize] architecture of {name}: got {architectures[0]}, expected one of transformers; name a --task"
        )
    return found


class QuantoCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """The group of commands."""

    COMMAND = CommandInfo(name="quanto", help="Hugging Face models quantization tools")
    SUBCOMMANDS = (
        CommandInfo(name="quantize", help="Quantize Hugging Face models.", subcommand_class=QuantizeCommand),
    )
