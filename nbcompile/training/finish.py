"""The end of a run."""

from pathlib import Path

import torch

from nbcompile.checkpoint import save
from nbcompile.training.accuracy import accuracy
from nbcompile.training.compute import TrainingCost, advice
from nbcompile.training.data.base import Data
from nbcompile.training.deployed_accuracy import NOT_CHECKED, Deployed, check_files
from nbcompile.training.outputs.records import TrainResult
from nbcompile.training.outputs.teacher_cost import cost_of_teachers
from nbcompile.training.session import Session
from nbcompile.training.tasks.classification import CLASSIFICATION


def finish(session: Session, data: Data, output: Path, check_export: bool, spent: TrainingCost) -> TrainResult:
    """Measure what will be deployed, write the trained file.

    Args:
        session: after its last epoch.
        data: what it was trained on.
        output: the trained file.
        check_export: also write and measure deploy files.
        spent: what the run cost.
    """
    model = session.saved().eval()
    own = session.history[-1].val_accuracy
    if session.config.int8:  # what was measured is the simulation
        model.to(session.fabric.device)
        own = accuracy(session.fabric, model, session.val, data.task)
    fused = session.method.fused(model)
    fused_accuracy = None if fused is None else accuracy(session.fabric, fused, session.val, data.task)
    model.cpu().to(memory_format=torch.contiguous_format)
    files = NOT_CHECKED
    if session.fabric.is_global_zero:
        save(model, output, torch.zeros(1, *data.shape))
        session.folder.draw(session.history, session.method.task.metric)
        if check_export:
            files = check_files(model if fused is None else fused, data, session.config, session.folder.path)
    stored = session.stored
    found: Deployed = session.fabric.broadcast(files)
    result = TrainResult(
        method=session.config.method_row.name,
        data=data.name,
        metric=data.task.metric,
        history=tuple(session.history),
        accuracy=own,
        simulated_accuracy=session.history[-1].val_accuracy if session.config.int8 else None,
        fused_accuracy=fused_accuracy,
        onnx_accuracy=found.onnx,
        int8_accuracy=found.int8,
        notes=found.notes,
        seconds=sum(epoch.seconds for epoch in session.history),
        cost=spent,
        advice=_advice(session, data, spent),
        teacher_cost=cost_of_teachers(session.config.teachers) if stored is None else stored.training,
        stored_labels=None if stored is None else stored.shared(),
        output=output,
        run_dir=session.folder.path,
        model=model,
    )
    if session.fabric.is_global_zero:
        session.folder.keep_result(result)
    session.tell(result)
    return result


def _advice(session: Session, data: Data, spent: TrainingCost) -> str:
    if data.task is CLASSIFICATION:
        return advice(session.config.method_row, spent)
    return f"docs/accuracy.md measures classification, and has nothing on {data.task.name} yet"
