import inspect

import torch
from transformers import AutoConfig, CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from plasticity_nb.errors import PlasticityError


SMALL = {**dict.fromkeys('hidden_size d_model n_embd dim word_embed_proj_dim embedding_size attention_hidden_size emb_dim out_hidden_size text_hidden_size hidden_size_global backbone_hidden_size'.split(), 64),
    **dict.fromkeys('num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_encoder_layers num_blocks'.split(), 2),
    **dict.fromkeys('num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads'.split(), 4),
    **dict.fromkeys('intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim d_ff dff ffn_hidden_size mlp_hidden_size dense_intermediate_size'.split(), 96),
    **dict.fromkeys('max_position_embeddings n_positions n_ctx max_seq_len'.split(), 128),
    **dict.fromkeys('num_experts num_local_experts n_routed_experts moe_num_experts linear_num_value_heads linear_num_heads'.split(), 4),
    **dict.fromkeys('attention_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout dropout attention_probs_dropout_prob hidden_dropout_prob'.split(), 0.),
    **dict.fromkeys('moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size'.split(), 32),
    **dict.fromkeys('q_lora_rank kv_lora_rank head_dim v_head_dim swa_head_dim'.split(), 16),
    **dict.fromkeys('qk_nope_head_dim qk_rope_head_dim rotary_dim sliding_window hidden_size_per_layer_input mamba_n_heads mamba_num_heads linear_key_head_dim linear_value_head_dim linear_head_dim'.split(), 8),
    **dict.fromkeys('vocab_size vocab_size_per_layer_input n_words'.split(), 120), **dict.fromkeys('n_group topk_group n_shared_experts mamba_n_groups n_groups'.split(), 1),
    **dict.fromkeys('num_key_value_heads swa_num_key_value_heads kv_n_heads num_experts_per_tok linear_num_key_heads'.split(), 2),
    'pad_token_id':0, 'bos_token_id':1, 'eos_token_id':2, 'is_decoder':True,
    'mamba_d_state':8, 'mamba_d_conv':4, 'mamba_expand':2, 'mamba_d_head':16, 'mamba_head_dim':16, 'mamba_chunk_size':8}


SPECIAL = {k:dict(num_key_value_heads=4) for k in 'axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa minicpm3 youtu'.split()}
SPECIAL |= {k:dict(layer_types=['linear_attention','full_attention']) for k in 'granitemoehybrid qwen3_5_text qwen3_5_moe_text qwen3_next'.split()}
SPECIAL |= {k:dict(layer_types=['linear_attention','full_attention'], num_key_value_heads=4) for k in 'bailing_hybrid kimi_linear'.split()}
SPECIAL |= {'bamba':dict(attn_layer_indices=[1]), 'jamba':dict(attn_layer_period=2, attn_layer_offset=1), 'recurrent_gemma':dict(block_types=['recurrent','attention'], lru_width=64),
    'lfm3':dict(layer_types=['conv','full_attention']), 'lfm2_moe':dict(layer_types=['conv','full_attention'], num_dense_layers=1),
    'qwen4_exp_text':dict(layer_types=['linear_attention','indexed_attention'], indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=16, indexer_compress_ratio=4),
    'cohere_compass_text':dict(rope_parameters=dict(full_attention=dict(rope_type='default', rope_theta=1e4))),
    'dbrx':dict(attn_config=dict(rope_theta=1e4, clip_qkv=8.)), 'longcat_flash':dict(num_layers=1, num_key_value_heads=4, head_dim=8, zero_expert_num=2, moe_topk=2),
    'gpt_neo':dict(attention_types=[[['global','local'],1]], window_size=8), 'falcon_h1':dict(mamba_d_ssm=128), 'mamba2':dict(num_heads=8, head_dim=16),
    'zamba':dict(num_hidden_layers=4, layers_block_type=['mamba','hybrid','mamba','hybrid'], attention_hidden_size=128, attention_head_dim=32),
    'zamba2':dict(layers_block_type=['mamba','hybrid'], num_mem_blocks=1), 'zaya':dict(num_experts_per_tok=1),
    'reformer':dict(axial_pos_embds_dim=(32,32), axial_pos_shape=(8,16), attention_head_size=16), 'xlm':dict(causal=True), 'xmod':dict(languages=('en_XX',), default_language='en_XX'),
    'gemma3n_text':dict(num_hidden_layers=4, num_kv_shared_layers=0, layer_types=['sliding_attention','full_attention']*2, activation_sparsity_pattern=None),
    'gemma4_assistant':dict(text_config=dict(model_type='gemma4_text', hidden_size_per_layer_input=0, vocab_size_per_layer_input=0, num_kv_shared_layers=2)),
    'blt':dict(encoder_hash_byte_group_vocab=120), 'musicgen_decoder':dict(num_codebooks=1), 'musicgen_melody_decoder':dict(num_codebooks=1)}


def small_config(
    cls, # a config class of transformers
    sizes:dict # beyond `SMALL` and `SPECIAL`; for a config inside of it, a dict
): # config
    "A config of small sizes, and small configs inside of it."
    sizes = {**SPECIAL.get(cls.model_type, {}), **sizes}
    known = set(inspect.signature(cls.__init__).parameters).union(*(getattr(b, '__annotations__', {}) for b in cls.__mro__))
    kinds = {k:(sizes.get(k) or {}).get('model_type') for k in cls.sub_configs}
    inner = {k:CONFIG_MAPPING[kinds[k]] if kinds[k] else type(getattr(cls(), k)) if c is AutoConfig else c for k,c in cls.sub_configs.items()}
    inner = {k:small_config(c, sizes.get(k) or {}) for k,c in inner.items() if issubclass(c, PreTrainedConfig)}
    return cls(**{k:v for k,v in SMALL.items() if k in known} | sizes | inner)


def tiny_random(
    kind:str, # a `model_type` of transformers: 'llama', 'gpt2', ...
    seed=0, # for the weights
    max_params=20_000_000, # refuse what would not be tiny
    **sizes # to override, as the config names them
): # a model in eval mode, float32, on the CPU
    "A model of any causal architecture with tiny random weights."
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES: raise PlasticityError(f"{kind} is not a causal architecture of this version of transformers: give a model_type such as llama")
    model = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]]
    config = small_config(model.config_class, sizes)
    with torch.device('meta'): n = model._from_config(config).num_parameters()
    if n>max_params: raise PlasticityError(f"{kind} would have {n/1e6:.0f} M parameters at the smallest size known here: give it smaller sizes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model._from_config(config).eval()
