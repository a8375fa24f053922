"""
What differs between the decoders of BART, T5 and BERT: embeddings, order of norms, positions, head.

Each family wraps the modules of a Hugging Face model without copying a weight, so that training (LoRA, checkpointing,
optimizers) and serving see the same parameters. `decoder.py` adds what they share: caches, masks, beams.

Shapes: R decoder rows, T new tokens, P cached tokens, E width, H heads, D width of a head, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gr_components.errors import ModelError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
AttendMemory = Callable[[Tensor], Tensor]


class DecoderFamily:
    """
    Adapter to one family's decoder.

    `attention_scale` multiplies queries; `dropout` and `attention_dropout` are probabilities in training.
    """

    name: str
    num_layers: int
    num_heads: int
    head_size: int
    attention_scale: float
    dropout: float
    attention_dropout: float
    decoder_start: int
    max_positions: int | None

    def embed(self, ids_RT: Tensor, past: int) -> Tensor:
        """
        Embed tokens at positions past, past + 1, ...

        :param ids_RT: Token ids.
        :param past: Number of cached tokens P.
        :returns: States (R, T, E).
        """
        raise NotImplementedError

    def position_bias(self, past: int, new: int) -> Tensor | None:
        """
        Additive self-attention bias (1, H, T, P + T), or None where positions are embedded.

        :param past: Number of cached tokens P.
        :param new: Number of new tokens T.
        """
        return None

    def layer(self, index: int, x_RTE: Tensor, self_attention: Attend, cross_attention: AttendMemory) -> Tensor:
        """
        Run one layer.

        :param index: Layer number.
        :param x_RTE: States.
        :param self_attention: Maps projected (query, key, value), each (R, T, H * D), to the attended (R, T, H * D).
        :param cross_attention: Maps projected queries (R, T, H * D) to the attended memory (R, T, H * D).
        """
        raise NotImplementedError

    def memory_projections(self, index: int) -> tuple[nn.Module, nn.Module]:
        """
        Return the key and value projections of a layer's cross-attention.

        :param index: Layer number.
        """
        raise NotImplementedError

    def finish(self, x_RTE: Tensor) -> Tensor:
        """
        Apply what follows the last layer; the result is the decoder's output state.

        :param x_RTE: States.
        """
        return x_RTE

    def logits(self, x_NE: Tensor) -> Tensor:
        """
        Vocabulary logits of output states.

        :param x_NE: States (..., E).
        :returns: Logits (..., V).
        """
        raise NotImplementedError

    def _drop(self, module: nn.Module, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, module.training)


class BartFamily(DecoderFamily):
    """BART: learned positions, norms after each block."""

    name = "bart"

    def __init__(self, model: Any) -> None:
        config = model.config
        self._model, self._decoder = model, model.model.decoder
        self.num_layers, self.num_heads = config.decoder_layers, config.decoder_attention_heads
        self.head_size = config.d_model // self.num_heads
        self.attention_scale = self.head_size**-0.5
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        self.decoder_start = config.decoder_start_token_id
        self.max_positions = config.max_position_embeddings

    def embed(self, ids_RT: Tensor, past: int) -> Tensor:
        """Embed tokens."""
        decoder = self._decoder
        # BART's learned positions start at row 2 of the table.
        positions_TE = decoder.embed_positions.weight[past + 2 : past + 2 + ids_RT.shape[1]]
        return self._drop(decoder, decoder.layernorm_embedding(decoder.embed_tokens(ids_RT) + positions_TE))

    def layer(self, index: int, x_RTE: Tensor, self_attention: Attend, cross_attention: AttendMemory) -> Tensor:
        """Run one layer."""
        layer = self._decoder.layers[index]
        own, cross = layer.self_attn, layer.encoder_attn
        attended = own.out_proj(self_attention(own.q_proj(x_RTE), own.k_proj(x_RTE), own.v_proj(x_RTE)))
        x_RTE = layer.self_attn_layer_norm(x_RTE + self._drop(layer, attended))
        attended = cross.out_proj(cross_attention(cross.q_proj(x_RTE)))
        x_RTE = layer.encoder_attn_layer_norm(x_RTE + self._drop(layer, attended))
        return layer.final_layer_norm(x_RTE + self._drop(layer, layer.fc2(layer.activation_fn(layer.fc1(x_RTE)))))

    def memory_projections(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Key and value projections of the cross-attention."""
        cross = self._decoder.layers[index].encoder_attn
        return cross.k_proj, cross.v_proj

    def logits(self, x_NE: Tensor) -> Tensor:
        """Vocabulary logits."""
        return self._model.lm_head(x_NE) + self._model.final_logits_bias[0]


class T5Family(DecoderFamily):
    """T5: relative position bias shared by all layers, norms before each block, no attention scale."""

    name = "t5"

    def __init__(self, model: Any) -> None:
        config = model.config
        self._model, self._decoder = model, model.decoder
        self.num_layers, self.num_heads, self.head_size = len(model.decoder.block), config.num_heads, config.d_kv
        self.attention_scale = 1.0
        self.dropout = self.attention_dropout = config.dropout_rate
        self.decoder_start = config.decoder_start_token_id
        self.max_positions = None
        scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
        self._output_scale = config.d_model**-0.5 if scaled else 1.0

    def embed(self, ids_RT: Tensor, past: int) -> Tensor:
        """Embed tokens."""
        return self._drop(self._decoder, self._decoder.embed_tokens(ids_RT))

    def position_bias(self, past: int, new: int) -> Tensor | None:
        """Bias of relative positions."""
        attention = self._decoder.block[0].layer[0].SelfAttention
        device = attention.relative_attention_bias.weight.device
        query_T = torch.arange(past, past + new, device=device)
        key_S = torch.arange(past + new, device=device)
        bucket_TS = attention._relative_position_bucket(
            key_S[None] - query_T[:, None],
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        return attention.relative_attention_bias(bucket_TS).permute(2, 0, 1)[None]

    def layer(self, index: int, x_RTE: Tensor, self_attention: Attend, cross_attention: AttendMemory) -> Tensor:
        """Run one layer."""
        own, cross, forward = self._decoder.block[index].layer
        normed, attention = own.layer_norm(x_RTE), own.SelfAttention
        attended = self_attention(attention.q(normed), attention.k(normed), attention.v(normed))
        x_RTE = x_RTE + self._drop(own, attention.o(attended))
        normed, attention = cross.layer_norm(x_RTE), cross.EncDecAttention
        x_RTE = x_RTE + self._drop(cross, attention.o(cross_attention(attention.q(normed))))
        return forward(x_RTE)

    def memory_projections(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Key and value projections of the cross-attention."""
        attention = self._decoder.block[index].layer[1].EncDecAttention
        return attention.k, attention.v

    def finish(self, x_RTE: Tensor) -> Tensor:
        """Apply the final norm."""
        return self._drop(self._decoder, self._decoder.final_layer_norm(x_RTE))

    def logits(self, x_NE: Tensor) -> Tensor:
        """Vocabulary logits."""
        return self._model.lm_head(x_NE * self._output_scale)


class BertFamily(DecoderFamily):
    """A BERT with cross-attention as the decoder of an `EncoderDecoderModel` (https://arxiv.org/abs/1907.12461)."""

    name = "bert"

    def __init__(self, model: Any) -> None:
        config = model.decoder.config
        if getattr(model, "enc_to_dec_proj", None) is not None:
            msg = "Encoder-decoders whose encoder and decoder differ in width are not supported."
            raise ModelError(msg)
        self._model, self._decoder = model, model.decoder.bert
        self.num_layers, self.num_heads = config.num_hidden_layers, config.num_attention_heads
        self.head_size = config.hidden_size // self.num_heads
        self.attention_scale = self.head_size**-0.5
        self.dropout, self.attention_dropout = config.hidden_dropout_prob, config.attention_probs_dropout_prob
        start = model.config.decoder_start_token_id
        self.decoder_start = config.bos_token_id or 0 if start is None else start
        self.max_positions = config.max_position_embeddings

    def embed(self, ids_RT: Tensor, past: int) -> Tensor:
        """Embed tokens."""
        embeddings = self._decoder.embeddings
        positions_TE = embeddings.position_embeddings.weight[past : past + ids_RT.shape[1]]
        states = embeddings.word_embeddings(ids_RT) + positions_TE + embeddings.token_type_embeddings.weight[0]
        return self._drop(self._decoder, embeddings.LayerNorm(states))

    def layer(self, index: int, x_RTE: Tensor, self_attention: Attend, cross_attention: AttendMemory) -> Tensor:
        """Run one layer."""
        layer = self._decoder.encoder.layer[index]
        own, cross = layer.attention, layer.crossattention
        attended = self_attention(own.self.query(x_RTE), own.self.key(x_RTE), own.self.value(x_RTE))
        x_RTE = own.output(attended, x_RTE)
        x_RTE = cross.output(cross_attention(cross.self.query(x_RTE)), x_RTE)
        return layer.output(layer.intermediate(x_RTE), x_RTE)

    def memory_projections(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Key and value projections of the cross-attention."""
        attention = self._decoder.encoder.layer[index].crossattention.self
        return attention.key, attention.value

    def logits(self, x_NE: Tensor) -> Tensor:
        """Vocabulary logits."""
        return self._model.decoder.cls(x_NE)


def family_of(model: Any) -> DecoderFamily:
    """
    Return the adapter for a Hugging Face encoder-decoder.

    :param model: A BART, T5 (also v1.1 and FLAN) or BERT-to-BERT model.
    :raises ModelError: If its decoder is of another kind.
    """
    kind = model.config.model_type
    if kind == "bart":
        return BartFamily(model)
    if kind == "t5":
        return T5Family(model)
    if kind == "encoder-decoder" and model.decoder.config.model_type == "bert":
        return BertFamily(model)
    msg = (
        f"Encoder-decoders of type '{kind}' are not supported; use BART, T5 or an encoder-decoder built from two BERTs."
    )
    raise ModelError(msg)
