"""`gr export`: a model in, a verified ONNX folder out."""

import click

from gr_components.progress import Console
from gr_export.exporting import TASKS, export_model


@click.command(name="export")
@click.argument("model")
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--task", type=click.Choice(TASKS), help="What the model is for.  [default: found out from its files]")
@click.option("--opset", type=click.IntRange(min=18), help="Version of the ONNX operators.  [default: the exporter's]")
@click.option("--atol", type=float, default=1e-4, show_default=True, help="Largest difference from torch.")
@click.option("--pooling", help="Pooling of a plain text encoder.  [default: mean]")
@click.option("--label", help="Class of a cross-encoder that means 'relevant', if it has three or more.")
@click.option("--max-length", type=click.IntRange(min=3), help="Largest number of tokens.  [default: the model's]")
@click.option("--revision", help="Branch, tag or commit on the model hub.")
@click.option("--local-files-only", is_flag=True, help="Use only what is cached already.")
def command(
    model: str,
    out: str,
    task: str | None,
    opset: int | None,
    atol: float,
    pooling: str | None,
    label: str | None,
    max_length: int | None,
    revision: str | None,
    local_files_only: bool,
) -> None:
    """
    Export MODEL to ONNX into the folder OUT.

    MODEL is a folder, package:NAME/FOLDER or a Hugging Face name of a text encoder or a cross-encoder. Use OUT as the
    model of DenseRetriever, DocumentEmbedder or CrossEncoderRanker with backend="onnx"; torch is not needed there.
    """
    made = export_model(
        model,
        out,
        task=None if task is None else "dense" if task == "dense" else "ranker",
        opset=opset,
        atol=atol,
        pooling=pooling,
        label=int(label) if label is not None and label.isdecimal() else label,
        max_length=max_length,
        revision=revision,
        local_files_only=local_files_only,
        report=Console(),
    )
    shapes = ", ".join(f"{batch}x{length}" for batch, length in made.probes)
    click.echo(f"{made.folder}: {made.task}, {made.size_bytes / 1e6:.1f} MB, opset {made.opset}")
    click.echo(f"largest difference from torch {made.max_abs_diff:.1e} (allowed {atol:.0e}) over batches {shapes}")
