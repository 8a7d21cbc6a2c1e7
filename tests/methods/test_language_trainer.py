import logging

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import BitsAndBytesConfig, Trainer, TrainingArguments

from hf_llm_recipes.methods._language_trainer import LanguageTrainer
from hf_llm_recipes.methods.base import Parts
from hf_llm_recipes.methods.supervised import Supervised
from hf_llm_recipes.models.decoder import HlrDecoderConfig, HlrDecoderForCausalLM
from hf_llm_recipes.tasks._packing import PackedCollator, PaddedCollator
from hf_llm_recipes.tuning._model import _keep_4bit_arithmetic

SIZE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
GPT2 |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
LENGTHS = [9, 4, 1, 12, 6, 7, 3, 10]


def rows(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        ids = torch.randint(3, 33, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return made


def model(name="Llama", **config):
    torch.manual_seed(0)
    if name == "hlr_decoder":
        return HlrDecoderForCausalLM(HlrDecoderConfig(**{**SIZE, **config}))
    size = {"GPT2": GPT2}.get(name, SIZE)
    made = getattr(transformers, f"{name}Config")(**{**size, **config})
    suffix = {"GPT2": "LMHeadModel"}.get(name, "ForCausalLM")
    return getattr(transformers, name + suffix)(made)


def trainer(made, folder, collator=None, *, shift_labels=True, cls=LanguageTrainer, **arguments):
    given = {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        **arguments,
    }
    more = {"shift_labels": shift_labels} if cls is LanguageTrainer else {}
    return cls(
        model=made,
        args=TrainingArguments(output_dir=str(folder), **given),
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=collator or PaddedCollator(pad_token_id=0),
        **more,
    )


def losses(trained):
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def weights(made):
    return {name: p.detach().clone() for name, p in made.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2", "hlr_decoder"])
@pytest.mark.parametrize("collator", [PackedCollator(), PaddedCollator(pad_token_id=0)])
def test_the_loss_and_gradients_are_the_models_own(name, collator, tmp_path):
    made = model(name)
    batch = collator(rows())
    own = made(**batch, use_cache=False).loss
    wanted = torch.autograd.grad(own, list(made.parameters()))
    trained = trainer(made, tmp_path)
    found = trained.compute_loss(made.train(), batch)
    assert trained.loss_mode == "supervised"
    torch.testing.assert_close(found, own)
    torch.testing.assert_close(torch.autograd.grad(found, list(made.parameters())), wanted)


CHANGED = [
    ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}, "logits", "changes its logits"),
    ("Cohere", {"logit_scale": 0.0625}, "logits", "changes its logits"),
    ("Granite", {"logits_scaling": 2.0}, "logits", "changes its logits"),
    ("Mixtral", {"num_local_experts": 2, "output_router_logits": True}, "own", "more than a cross-entropy"),
    ("Granite", {"logits_scaling": 1.0}, "supervised", "supervised positions only"),
]


@pytest.mark.parametrize(("name", "config", "mode", "said"), CHANGED)
@pytest.mark.parametrize("collator", [PackedCollator(), PaddedCollator(pad_token_id=0)])
def test_models_that_change_logits_or_losses_are_found(name, config, mode, said, collator, tmp_path, caplog):
    made = model(name, **config)
    batch = collator(rows())
    own = made.eval()(**batch, use_cache=False).loss
    trained = trainer(made, tmp_path)
    with caplog.at_level(logging.INFO, "hf_llm_recipes"):
        found = trained.compute_loss(made, batch)
    assert trained.loss_mode == mode
    assert said in caplog.text
    torch.testing.assert_close(found, own)
    torch.testing.assert_close(trained.compute_loss(made, batch, return_outputs=True)[0], own)


def test_labels_of_their_own_position(tmp_path):
    config = transformers.BertConfig(**{**SIZE, "intermediate_size": 48, "hidden_dropout_prob": 0.0})
    made = transformers.BertForMaskedLM(config).eval()
    batch = PaddedCollator(pad_token_id=0, shifted_labels=False)(rows())
    trained = trainer(made, tmp_path, shift_labels=False)
    torch.testing.assert_close(trained.compute_loss(made, batch), made(**batch).loss)
    assert trained.loss_mode == "supervised"


def test_an_encoder_decoder(tmp_path):
    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    made = transformers.T5ForConditionalGeneration(config).eval()
    batch = PaddedCollator(pad_token_id=0, shifted_labels=False)(rows())
    batch["labels"] = batch["labels"][:, :5].contiguous()
    trained = trainer(made, tmp_path, shift_labels=False)
    torch.testing.assert_close(trained.compute_loss(made, batch), made(**batch).loss)
    assert trained.loss_mode == "supervised"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Mixtral", "Gemma2"])
def test_eight_batches_of_one_are_one_of_eight(packed, name, tmp_path):
    collator = PackedCollator() if packed else PaddedCollator(pad_token_id=0)
    config = {"Gemma2": {"head_dim": 8}}.get(name, {})
    found = []
    for size, count in ((8, 1), (1, 8)):
        made = model(name, **config)
        trained = trainer(
            made,
            tmp_path,
            collator,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=count,
            optim="sgd",
        )
        trained.train()
        found.append((losses(trained), weights(made)))
    (first, first_weights), (second, second_weights) = found
    assert first == pytest.approx(second, rel=1e-4)
    for key, value in first_weights.items():
        torch.testing.assert_close(value, second_weights[key], rtol=1e-4, atol=1e-6)


def test_packed_steps_are_padded_steps_and_the_stock_trainers(tmp_path):
    found = []
    for collator, cls in (
        (PackedCollator(), LanguageTrainer),
        (PaddedCollator(pad_token_id=0), LanguageTrainer),
        (PaddedCollator(pad_token_id=0), Trainer),
    ):
        made = model()
        if isinstance(collator, PackedCollator):
            made.set_attn_implementation("hlr_packed")
        trained = trainer(made, tmp_path, collator, cls=cls, max_steps=3)
        trained.train()
        found.append(losses(trained))
    assert len(found[0]) == 3
    assert found[0] == pytest.approx(found[2], rel=1e-4)
    assert found[1] == pytest.approx(found[2], rel=1e-4)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
@pytest.mark.parametrize("width", [None, "load_in_4bit", "load_in_8bit"])
def test_adapters_on_every_kind_of_base(targets, width, tiny_llama, tmp_path):
    quantization = BitsAndBytesConfig(**{width: True}) if width else None
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=quantization)
    _keep_4bit_arithmetic(base)
    torch.manual_seed(0)
    made = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    trained = trainer(made, tmp_path, PackedCollator(), max_steps=2)
    before = weights(made)
    trained.train()
    assert trained.loss_mode == "supervised"
    assert all(not torch.equal(p, before[name]) for name, p in weights(made).items() if "lora_B" in name)
    batch = PackedCollator()(rows())
    with torch.no_grad():
        found = trained.compute_loss(made.eval(), batch)
        torch.testing.assert_close(found, made(**batch, use_cache=False).loss, rtol=1e-3, atol=1e-3)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    found = []
    for switched in (False, True):
        made = model()
        trained = trainer(made, tmp_path, gradient_checkpointing=switched)
        trained.train()
        found.append(weights(made))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_an_evaluation_is_the_mean_over_tokens_however_rows_are_batched(tmp_path):
    made = model()
    batch = PaddedCollator(pad_token_id=0)(rows())
    expected = made.eval()(**batch).loss.item()
    for collator in (PackedCollator(), PaddedCollator(pad_token_id=0)):
        for size in (1, 3, 8):
            trained = trainer(made, tmp_path, collator, per_device_eval_batch_size=size)
            assert trained.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_logits_reach_compute_metrics(tmp_path):
    trained = trainer(model(), tmp_path, per_device_eval_batch_size=8)
    shapes = []
    trained.compute_metrics = lambda found: shapes.append(found.predictions.shape) or {"one": 1.0}
    metrics = trained.evaluate()
    assert shapes == [(8, 12, 40)]
    assert metrics["eval_one"] == 1.0
    assert metrics["eval_loss"] == pytest.approx(trainer(model(), tmp_path).evaluate()["eval_loss"], rel=1e-5)


def test_label_smoothing(tmp_path):
    made = model()
    batch = PaddedCollator(pad_token_id=0)(rows())
    logits = made.eval()(**batch).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.1)
    trained = trainer(made, tmp_path, label_smoothing_factor=0.1)
    torch.testing.assert_close(trained.compute_loss(made, batch), expected)
    routed = model("Mixtral", num_local_experts=2, output_router_logits=True)
    trained = trainer(routed, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(
        ValueError, match=r"label_smoothing_factor=0\.1 has no meaning for MixtralForCausalLM"
    ):
        trained.compute_loss(routed, batch)


def test_tokens_are_logged(tmp_path):
    for collator in (PackedCollator(), PaddedCollator(pad_token_id=0)):
        trained = trainer(model(), tmp_path, collator, max_steps=2)
        trained.train()
        lines = [line for line in trained.state.log_history if "loss" in line]
        # 52 tokens. Of each row a third (rounded down) is masked and the first has no position before it:
        # 9-3 + 4-1 + 1-1 + 12-4 + 6-2 + 7-2 + 3-1 + 10-3
        assert [line["tokens"] for line in lines] == [52, 52]
        assert [line["supervised_tokens"] for line in lines] == [35, 35]


def test_a_batch_with_nothing_to_learn_is_a_loss_of_zero(tmp_path):
    made = model()
    trained = trainer(made, tmp_path, PackedCollator())
    empty = PackedCollator()([{"input_ids": [5, 6], "labels": [-100, -100]}])
    loss = trained.compute_loss(made.train(), empty, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    assert trained.loss_mode is None  # nothing was there to choose by


class Vocabulary:
    vocabulary_labels, shifted_labels = True, True


class Classes:
    vocabulary_labels = False


def test_the_supervised_method_takes_it_for_labels_that_are_tokens(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for task, cls in ((Vocabulary, LanguageTrainer), (Classes, Trainer), (None, Trainer)):
        parts = Parts(
            model=model(),
            arguments=arguments,
            train=rows(),
            eval=None,
            collator=PackedCollator(),
            compute_metrics=None,
            compute_loss=None,
            processing_class=None,
            task=task,
        )
        assert type(Supervised().build(parts)) is cls


@pytest.mark.parametrize(
    "config,mode",
    [(None, "own"), ({"rope": True}, "own"), ({"fused_linear_cross_entropy": False}, "supervised")],
)
def test_the_loss_stays_ours_beside_liger_kernels_unless_they_fuse_it(tmp_path, monkeypatch, config, mode):
    applied = []
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", lambda made, given: applied.append(given))
    made = trainer(model(), tmp_path, use_liger_kernel=True, liger_kernel_config=config)
    made.train()
    assert (applied, made.loss_mode) == ([config], mode)
