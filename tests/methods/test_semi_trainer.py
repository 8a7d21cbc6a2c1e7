"""The semi-supervised Trainer beside what Trainers are used with: best checkpoints, half precision, …"""

import copy

import pytest
import torch
from _tiny_parts import make_parts
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, Trainer, TrainerCallback

from hf_llm_recipes.algorithms.fixmatch import FixMatch
from hf_llm_recipes.algorithms.jointmatch import JointMatch
from hf_llm_recipes.algorithms.pi_model import PiModel
from hf_llm_recipes.methods.semi_supervised import SemiSupervised
from hf_llm_recipes.tuning._model import _keep_4bit_arithmetic

FIXED = {"warm_start": "none", "warmup_fraction": 0.0, "unlabeled_ratio": 2, "guard": False}


def built(folder, out, *, algorithm=None, keys=None, **given):
    parts = make_parts(folder, out, **given)
    parts.algorithm, parts.unlabeled_rows = algorithm or FixMatch(threshold=0.34), parts.unlabeled
    return SemiSupervised(**FIXED | (keys or {})).build(parts)


def lora(folder, bits=None, **keys):
    """BERT of three classes under an adapter, on a quantised base where ``bits`` says so."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    torch.manual_seed(0)
    quantization = None
    if bits is not None:
        heads = ["classifier", "pooler"]
        quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=heads)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, quantization_config=quantization, dtype=torch.float32
    )
    if bits is not None:
        _keep_4bit_arithmetic(model)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], **keys)
    )


def values(weight_set):
    return {name: value.detach().clone() for name, value in weight_set.values.items()}


class Teachers(TrainerCallback):
    """The teacher's and the student's weights after every step."""

    def __init__(self):
        self.teachers, self.students = {}, {}

    def on_save(self, args, state, control, **rest):
        self.teachers[state.global_step] = values(self.trainer.teacher)
        self.students[state.global_step] = {
            name: p.detach().clone() for name, p in self.trainer.teacher.parameters.items()
        }


@pytest.mark.parametrize("export", ["teacher", "student"])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_best_checkpoint_brings_its_own_teacher_back(tiny_bert, tmp_path, export, adapter):
    seen = Teachers()
    trainer = built(
        tiny_bert,
        tmp_path,
        model=lora(tiny_bert) if adapter else None,
        keys={"export": export, "ema_decay": 0.8},
        callbacks=[seen],
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        max_steps=6,
        load_best_model_at_end=True,
        metric_for_best_model="eval_made_up",
        greater_is_better=True,
    )
    seen.trainer = trainer
    scores = iter([(0.1, 0.2), (0.9, 0.3), (0.5, 0.4)])  # the exported weights' and the others'
    calls = []

    def metrics(prediction):
        if not calls:
            calls.extend(next(scores))
        return {"made_up": calls.pop(0)}

    trainer.compute_metrics = metrics
    trainer.train()
    assert trainer.state.best_metric == 0.9
    mine, others = (seen.teachers, seen.students) if export == "teacher" else (seen.students, seen.teachers)
    parameters = trainer.teacher.parameters
    assert any(not torch.equal(mine[4][name], mine[6][name]) for name in parameters)
    for name, parameter in parameters.items():
        assert torch.equal(parameter.detach(), mine[4][name]), name
        assert torch.equal(trainer.teacher.values[name], others[4][name]), name


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: lora(folder, use_dora=True),
        lambda folder: lora(folder, modules_to_save=["pooler"]),
        lambda folder: lora(folder, bits=8),
        lambda folder: lora(folder, bits=4),
    ],
    ids=["dora", "modules_to_save", "8-bit", "4-bit"],
)
def test_the_teacher_of_an_adapter_is_the_average_of_what_is_trained(tiny_bert, tmp_path, make):
    """After one step at decay .5 the teacher is the mean of the weights before and after it."""
    model = make(tiny_bert)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer = built(tiny_bert, tmp_path, model=model, keys={"export": "student"}, max_steps=1)
    trainer.decay = trainer.teacher.decay = 0.9
    trainer.train()
    assert trainer.computed["strong_rows"] > 0
    assert trainer.teacher.values.keys() == before.keys()
    moved = 0
    for name, parameter in trainer.teacher.parameters.items():
        expected = (before[name] + parameter.detach()) / 2  # min(1 - 1/2, .9)
        assert torch.allclose(trainer.teacher.values[name], expected, atol=1e-7), name
        moved += not torch.equal(before[name], parameter)
    assert moved > len(before) // 2
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in base.items())


def dry_model(folder):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


@pytest.mark.parametrize("algorithm", [FixMatch(threshold=0.34), PiModel()])
def test_activation_checkpointing_changes_no_gradient(tiny_bert, tmp_path, algorithm):
    found = []
    for checkpointing in (False, True):
        trainer = built(
            tiny_bert,
            tmp_path / str(checkpointing),
            model=dry_model(tiny_bert),
            algorithm=copy.deepcopy(algorithm),
            gradient_checkpointing=checkpointing,
            logging_steps=1,
        )
        trainer.train()
        assert trainer.computed["strong_rows"] > 0
        found.append([entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry])
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_bfloat16_is_used_for_both_losses_and_the_teacher(tiny_bert, tmp_path):
    trainer = built(tiny_bert, tmp_path, bf16=True, logging_steps=1, keys={"ema_decay": 0.5})
    kinds = {True: set(), False: set()}
    trainer.model.bert.encoder.layer[1].output.dense.register_forward_hook(
        lambda module, given, output: kinds[torch.is_grad_enabled()].add(output.dtype)
    )
    trainer.train()
    assert kinds == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert all(loss == loss and 0 < loss < 100 for loss in losses)
    assert all(value.dtype == torch.float32 for value in trainer.teacher.values.values())


def test_the_guard_hears_evaluations_where_the_student_is_its_own_teacher(tiny_bert, tmp_path):
    trainer = built(
        tiny_bert, tmp_path, algorithm=PiModel(), keys={"guard": True}, eval_strategy="steps", eval_steps=2
    )
    assert trainer.teacher is None
    heard = []
    trainer.guard.evaluated = lambda step, score, name: heard.append((step, name))
    trainer.train()
    assert heard == [(2, "accuracy"), (4, "accuracy")]


def test_several_eval_sets_are_each_judged_twice(tiny_bert, tmp_path):
    trainer = built(tiny_bert, tmp_path, eval_strategy="steps", eval_steps=4)
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    trainer.train()
    seen = {key for entry in trainer.state.log_history for key in entry if key.endswith("accuracy")}
    assert seen == {
        "eval_a_accuracy",
        "eval_b_accuracy",
        "eval_a_student_accuracy",
        "eval_b_student_accuracy",
    }


def test_while_the_guard_waits_only_labeled_rows_are_learned_from(tiny_bert, tmp_path):
    trainer = built(tiny_bert, tmp_path, logging_steps=1, keys={"guard": True})
    trainer.guard._is_short = lambda items: True
    trainer.train()
    assert trainer.computed == {"strong_rows": 0, "rows": 64}
    assert trainer.guard.steps_waited == 4
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["unlabeled/waiting"] for entry in logged] == [1.0] * 4
    assert [entry["unlabeled/loss"] for entry in logged] == [0.0] * 4


def test_the_second_student_of_the_best_checkpoint_comes_back_too(tiny_bert, tmp_path):
    trainer = built(tiny_bert, tmp_path, algorithm=JointMatch(threshold=0.4), max_steps=4)
    kept = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, **rest):
            kept[state.global_step] = values(trainer.peer)

    trainer.add_callback(Keep())
    trainer.train()
    state = torch.load(tmp_path / "checkpoints" / "checkpoint-2" / "semi_supervised.pt", weights_only=True)
    assert any(not torch.equal(kept[2][name], kept[4][name]) for name in kept[2])
    for name, value in state["peer"].items():
        assert torch.equal(value, kept[2][name])
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoints" / "checkpoint-2")
    trainer._load_best_model()
    for name, value in trainer.peer.values.items():
        assert torch.equal(value, kept[2][name])


def test_sharded_weights_are_refused(tiny_bert, tmp_path, monkeypatch):
    plain = Trainer.__init__

    def sharded(self, **rest):
        plain(self, **rest)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "__init__", sharded)
    with pytest.raises(ValueError, match=r"swaps whole weights .* allowed: no FSDP and no DeepSpeed"):
        built(tiny_bert, tmp_path)
