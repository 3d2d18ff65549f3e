from contextlib import contextmanager

import torch
from fastcore.basics import patch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_mask

from plasticity_nb.anatomy import base_attention, register_attention, route, unroute
from plasticity_nb.errors import PlasticityError
from plasticity_nb.models import as_lm


def score_rows(
    q:torch.Tensor, # [B, KV, G, T, D]: queries, grouped by the KV head they read, already scaled
    k:torch.Tensor, # [B, KV, S, D]
    lo:int, hi:int, # rows lo ... hi-1
    causal:bool, # row t sees keys 0 ... t
    mask:torch.Tensor, # None, or [B, 1 or KV*G, T, S], True where seen, or added to the scores
    softcap:float # None, or scores become softcap·tanh(score/softcap)
)->torch.Tensor: # [B, KV, G, hi-lo, keys]
    "Attention scores of a few rows."
    B,KV,G,_,D = q.shape
    n = hi if causal else k.shape[2]
    s = (q[...,lo:hi,:].reshape(B*KV, G*(hi-lo), D) @ k[:,:,:n].reshape(B*KV, n, D).mT).view(B, KV*G, hi-lo, n)
    if softcap is not None: s = s.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        m = mask[:,:,lo:hi,:n]
        s = s.masked_fill_(~m, -1e30) if m.dtype==torch.bool else s.add_(m).clamp_(min=-1e30)
    elif causal: s[...,lo:].add_(s.new_full((hi-lo,hi-lo), -1e30).triu_(1))
    return s


@torch.no_grad()
def attention_entropy(
    q:torch.Tensor, # queries [B, H, T, D]
    k:torch.Tensor, # keys [B, KV, S, D]; query head h reads KV head kv_index[h], by default h // (H/KV)
    scale:float=None, # of the scores; default 1/sqrt(D)
    causal:bool=False, # without a mask: query t sees keys 0 ... t
    mask:torch.Tensor=None, # [B, 1 or H, T, S]: True where seen, or a float added to the scores (ALiBi too)
    softcap:float=None, # as Gemma 2 caps its scores
    kv_index:torch.Tensor=None, # LongTensor [H], for heads that do not lie in equal groups
    rows:int=None # rows at a time; default: what fits into the cache
)->torch.Tensor: # float32 [B, H, T], nats
    "Exact Shannon entropy of every row of every head, in float32."
    if kv_index is not None: k = k[:,kv_index]
    (B,H,T,D),KV = q.shape,k.shape[1]
    q = (q.float()*(D**-0.5 if scale is None else scale)).reshape(B, KV, H//KV, T, D)
    k = k[:,:,:T].float() if causal else k.float()
    rows = rows or max(16, (1<<18 if q.device.type=='cpu' else 1<<26)//(B*H*k.shape[2]))
    out = torch.empty(B, H, T, device=q.device)
    for lo in range(0, T, rows):
        hi = min(T, lo+rows)
        s = score_rows(q, k, lo, hi, causal, mask, softcap)
        p = s.softmax(-1)
        lse = s.amax(-1) - p.amax(-1).log_()
        out[:,:,lo:hi] = lse - p.mul_(s).sum(-1)
    return out


class LayerGate:
    "What one attention layer needs to know: its row of the gates, and whether somebody is listening."
    def __init__(self, inst, i): self.inst,self.i = inst,i
    @property
    def gate(self): return self.inst.gates[self.i, :self.inst.anatomy.layers[self.i].n_heads] # [heads]

class Instrument:
    "Gates and entropy on a living model."
    def __init__(self,
        lm, # `LM` or transformers decoder
        trainable:bool=False # gates are to be learned
    ):
        self.lm = as_lm(lm)
        self.anatomy = self.lm.anatomy
        g = torch.ones(self.anatomy.n_layers, max(self.anatomy.heads), device=self.lm.device)
        self.gates = nn.Parameter(g*self.anatomy.exists.to(g.device), requires_grad=trainable)
        self.listening,self._undo = None,[]
        self._attach()


@patch
def _attach(self:Instrument):
    model = self.lm.model
    modules = dict(model.named_modules())
    if any(hasattr(m, 'plastic') for m in modules.values()): raise PlasticityError(f"{self.lm.name} already carries an instrument: use that one, or take it off first with its remove()")
    was = route(model, 'plastic')
    self._undo.append(lambda: unroute(was))
    for i,l in enumerate(self.anatomy.layers):
        gate,module = LayerGate(self, i),modules[l.name]
        if l.gate_at=='attention':
            module.plastic = gate
            self._undo.append(lambda m=module: delattr(m, 'plastic'))
        else: self._undo.append(modules[l.out.name].register_forward_pre_hook(_gate_input(gate, l.value_dim)).remove)
        if l.gate_at=='projection' and l.interface:
            module.plastic = gate
            self._undo.append(lambda m=module: delattr(m, 'plastic'))
    self._undo.append(model.register_forward_pre_hook(self._note_padding, with_kwargs=True).remove)

@patch
def remove(self:Instrument):
    "Take the instrument off; the model is what it was. May be called twice."
    while self._undo: self._undo.pop()()

@patch
def __enter__(self:Instrument): return self
@patch
def __exit__(self:Instrument, *exc): self.remove()


def apply_gate(
    out:torch.Tensor, # [..., heads, size]
    gate:torch.Tensor # [heads]
)->torch.Tensor: # gated; in place where no gradient is needed
    "Multiply each head's output by its gate."
    g = gate.to(out.dtype)[:,None]
    return out*g if torch.is_grad_enabled() and (out.requires_grad or g.requires_grad) else out.mul_(g)

def _gate_input(layer, size):
    def hook(module, args):
        x = args[0].unflatten(-1, (-1, size))
        return ((x*layer.gate.to(x.dtype)[:,None]).flatten(-2), *args[1:])
    return hook

def plastic_attention(base, module, query, key, value, attention_mask=None, *args, **kwargs):
    "The model's own attention, then the gates; entropy if somebody listens."
    out,*rest = base_attention(module, base)(module, query, key, value, attention_mask, *args, **kwargs)
    layer = getattr(module, 'plastic', None)
    if layer is None: return out,*rest
    if layer.inst.listening is not None: layer.inst.listening.hear(layer, module, query, key, attention_mask, kwargs)
    if layer.inst.anatomy.layers[layer.i].gate_at=='attention': out = apply_gate(out, layer.gate)
    return out,*rest
register_attention('plastic', plastic_attention)


@patch
def _note_padding(self:Instrument, module, args, kwargs):
    if self.listening is not None: self.listening.padding = kwargs.get('attention_mask')

def instrument(
    lm, # `LM` or transformers decoder
    trainable:bool=False # whether the gates are to be learned
)->Instrument: # use it in `with`, or call its `remove()`
    "Put gates and entropy recording on a model."
    return Instrument(lm, trainable)


class EntropyRecord:
    "Entropy of attention, summed up per head."
    def __init__(self, inst, every=1, per_token=False):
        self.inst,self.every,self.keep,self.padding = inst,every,per_token,None
        shape = inst.gates.shape
        self.sum,self.square = torch.zeros(shape, device=inst.gates.device, dtype=torch.float64),torch.zeros(shape, device=inst.gates.device, dtype=torch.float64)
        self.rows = torch.zeros(shape[0], 1, device=inst.gates.device)
        self.tokens = [[] for _ in inst.anatomy.layers]

    @property
    def entropy(self)->torch.Tensor: return (self.sum/self.rows).float() # [layers, heads], nats; nan where nothing was seen
    @property
    def spread(self)->torch.Tensor: return (self.square/self.rows-(self.sum/self.rows)**2).clamp_min(0).sqrt().float() # standard deviation over rows


@patch
def hear(self:EntropyRecord, layer, module, q, k, mask, kwargs):
    "Add one attention call to the record."
    if kwargs.get('position_bias') is not None: raise PlasticityError(f"entropy is not known for {type(module).__name__}: it adds a position bias of its own to the scores")
    T,S,i = q.shape[2],k.shape[2],layer.i
    causal = mask is None and T>1 and kwargs.get('is_causal') is not False and getattr(module, 'is_causal', True)
    real = torch.ones(q.shape[0], T, dtype=torch.bool, device=q.device)
    if self.padding is not None and self.padding.dim()==2: real = self.padding[:,-T:].bool()
    if isinstance(mask, BlockMask): mask = create_mask(mask.mask_mod, q.shape[0], 1, T, S, device=q.device)
    if self.every>1:
        at = torch.arange(self.every-1, T, self.every, device=q.device)
        if causal: mask,causal = (torch.arange(S, device=q.device) <= at[:,None])[None,None],False
        elif mask is not None: mask = mask[:,:,at]
        q,real = q[:,:,at],real[:,at]
    if mask is not None: mask = mask[...,:S]
    e = attention_entropy(q, k, kwargs.get('scaling'), causal, mask, kwargs.get('softcap'))
    w = torch.where(real[:,None], e.double(), 0.)
    n = e.shape[1]
    self.sum[i,:n] += w.sum((0,2)); self.square[i,:n] += (w*w).sum((0,2)); self.rows[i] += real.sum()
    if self.keep: self.tokens[i].append(torch.where(real[:,None], e, torch.nan))


@patch
@contextmanager
def record(self:Instrument,
    every:int=1, # look at each `every`-th row only
    per_token:bool=False # keep entropies of all tokens in `.tokens[layer]`, nan at padding
)->EntropyRecord: # fills while the block runs
    "Listen to the entropy of every head."
    for l in self.anatomy.layers:
        if not l.interface: raise PlasticityError(f"the attention weights of {l.name} cannot be seen: {self.anatomy.model_name} computes attention in its own code, so entropy is not available (gates are)")
        if l.sinks: raise PlasticityError(f"entropy is not defined for {l.name}: {self.anatomy.model_name} has attention sinks, which take part of the probability away from the tokens")
    was,self.listening = self.listening,EntropyRecord(self, every, per_token)
    try: yield self.listening
    finally: self.listening = was


@torch.no_grad()
def gate_against_slice(
    model, # transformers decoder
    ids:torch.Tensor # LongTensor [B, T]
)->tuple: # largest difference of a logit between gating and zeroing; smallest difference to the wrong head
    "Compare every head's gate with its slice of the output projection."
    a,worst,control = as_lm(model).anatomy,0.,float('inf')
    for i,l in enumerate(a.layers):
        w = model.get_parameter(l.out.name+'.weight')
        def zeroed(h):
            keep = w.clone(); b = l.out.cols(l.head_columns(h))[0]
            w.index_fill_(b.dim, b.index, 0); y = model(input_ids=ids).logits; w.copy_(keep); return y
        slices = [zeroed(h) for h in range(l.n_heads)]
        with instrument(model) as inst:
            for h in range(l.n_heads):
                inst.gates[i,h] = 0; y = model(input_ids=ids).logits; inst.gates[i,h] = 1
                worst = max(worst, (y-slices[h]).abs().max().item())
                if l.n_heads>1: control = min(control, (y-slices[(h+1)%l.n_heads]).abs().max().item())
    return worst,control


@torch.no_grad()
def causality_gap(
    model, # transformers decoder, perhaps instrumented
    ids:torch.Tensor, # LongTensor [1, T]
    pad:int=0 # so many tokens of left padding
)->float: # largest change of an earlier logit, relative to the largest logit
    "How much the logits before the last token change when the last token does."
    a = torch.cat([ids.new_full((1,pad), 0), ids], 1); b = a.clone()
    b[0,-1] = (b[0,-1]+1) % model.config.get_text_config(decoder=True).vocab_size
    mask = (torch.arange(a.shape[1], device=a.device)>=pad).long()[None]
    ya,yb = (model(input_ids=t, attention_mask=mask, use_cache=False).logits[:,pad:-1] for t in (a,b))
    return ((ya-yb).abs().max()/ya.abs().max()).item()

@torch.no_grad()
def cache_gap(
    model, # transformers decoder, perhaps instrumented
    ids:torch.Tensor # LongTensor [1, T]
)->float: # largest difference of a logit, relative to the largest logit
    "How far the second half of a text, read from a cache, is from the text read at once."
    half = ids.shape[1]//2
    past = model(input_ids=ids[:,:half], use_cache=True).past_key_values
    y,whole = model(input_ids=ids[:,half:], past_key_values=past, use_cache=True).logits,model(input_ids=ids, use_cache=False).logits[:,half:]
    return ((y-whole).abs().max()/whole.abs().max()).item()
