"""A packed sequence must train the model on exactly what it reads when it is asked."""

import numpy as np
import pytest
import torch
from PIL import Image

from fs_runtime.reference.conversations import Conversation, sample_conversation
from fs_runtime.reference.evaluate import assistant_message, load_model, user_message
from fs_runtime.reference.packing import Packer
from fs_runtime.reference.train import TrainingSettings, _Learner, _to_tensors, visibility


def conversations(kind, count=6, seed=0):
    """Sampled conversations that are independent (or not) and have pictures (or not)."""
    rng = np.random.default_rng(seed)
    found: list[Conversation] = []
    while len(found) < count:
        made = sample_conversation(rng, turns=3)
        matches = {
            "independent": made.independent and made.pictures,
            "sequential": not made.independent and len(made.pictures) > 1,
            "text only": not made.pictures,
        }
        if matches[kind]:
            found.append(made)
    return found


def as_messages(conversation, last):
    """What a client would send to be answered turn number `last`."""
    images = iter(Image.fromarray(picture.pixels) for picture in conversation.pictures)
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for index, turn in enumerate(conversation.turns[: last + 1]):
        if conversation.independent and index < last:
            continue
        count = len(conversation.pictures) if conversation.independent else turn.new_pictures
        messages.append(user_message(turn.question.text, *(next(images) for _ in range(count))))
        if index < last:
            messages.append(assistant_message(turn.question.answer))
    return messages


@pytest.mark.parametrize("kind", ["independent", "sequential", "text only"])
def test_packed_hidden_states_equal_those_of_the_request(kind, untrained, untrained_folder, tokenizer):
    model, processor = load_model(untrained_folder)
    packer = Packer(tokenizer, length=420)
    for conversation in conversations(kind):
        batch = packer.pack([conversation])
        tensors = _to_tensors(batch)
        learner = _Learner(untrained, TrainingSettings())
        with torch.inference_mode():
            inner = untrained.model
            embedded = inner.language_model.embed_tokens(tensors["tokens"])
            if conversation.pictures:
                images = inner.multi_modal_projector(learner.features(tensors["pixels"]))
                is_image = (tensors["tokens"] == untrained.config.image_token_index).unsqueeze(-1)
                embedded = embedded.masked_scatter(is_image, images)
            hidden = inner.language_model(
                inputs_embeds=embedded,
                attention_mask=visibility(tensors["segments"]),
                position_ids=tensors["positions"],
                use_cache=False,
            ).last_hidden_state
            packed_logits = untrained.lm_head(hidden)[0]
            for turn in range(len(conversation.turns)):
                start = int(np.flatnonzero(batch.answers[0] == turn)[0])
                asked = processor.apply_chat_template(
                    as_messages(conversation, turn),
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
                alone = model(**asked).logits[0, -1]
                torch.testing.assert_close(packed_logits[start], alone, atol=1e-4, rtol=1e-4)


def test_targets_are_the_answer_and_its_end(tokenizer):
    packer = Packer(tokenizer, length=300)
    conversation = conversations("independent", count=1)[0]
    batch = packer.pack([conversation])
    end = tokenizer.token_to_id("<|end|>")
    for index, turn in enumerate(conversation.turns):
        tokens = batch.targets[0][batch.answers[0] == index]
        assert tokens[-1] == end
        assert tokenizer.decode(tokens[:-1].tolist()) == turn.question.answer
    assert (batch.targets[0][batch.answers[0] < 0] == -100).all()


def test_turns_that_do_not_fit_are_left_out_with_their_pictures(tokenizer):
    conversation = next(c for c in conversations("sequential", count=8) if c.turns[0].new_pictures == 1)
    first_turn = Packer(tokenizer, length=110).pack([conversation])
    assert len(first_turn.pixels) == 1
    assert (first_turn.tokens == tokenizer.token_to_id("<image>")).sum() == 64


def test_pictures_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="do not fit into a sequence of 60"):
        Packer(tokenizer, length=60).pack(conversations("independent", count=1))


def test_segments_see_the_shared_prefix_and_themselves_only():
    mask = visibility(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0]
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert mask.int().tolist() == expected
