import sys
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fastcore.basics import patch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plasticity_nb.errors import PlasticityError


BASES = ('sdpa', 'eager', 'flex_attention')

def base_attention(
    module:nn.Module, # attention layer that calls
    base:str # one of `BASES`
): # transformers' own function
    "The attention function that transformers itself would have called."
    if base=='eager': return next(f for c in type(module).__mro__ if (f := getattr(sys.modules[c.__module__], 'eager_attention_forward', None)))
    return ALL_ATTENTION_FUNCTIONS[base]

def register_attention(
    prefix:str, # names become `<prefix>_sdpa`, ...
    fn # called as fn(base, module, query, key, value, attention_mask, **kwargs); some models give all but the module by name
):
    "Offer `fn` to every model, once for each implementation it can stand in for."
    def over(base):
        def attention(module, *args, **kwargs): return fn(base, module, *args, **kwargs)
        return attention
    for base in BASES:
        AttentionInterface.register(f'{prefix}_{base}', over(base))
        AttentionMaskInterface.register(f'{prefix}_{base}', ALL_MASK_ATTENTION_FUNCTIONS[base])


def uses_interface(m:nn.Module)->bool: # False too for classes from outside of a modelling file
    "Whether the file that a module's class comes from calls attention through transformers' registry."
    return hasattr(sys.modules[type(m).__module__], 'ALL_ATTENTION_FUNCTIONS')

def attention_configs(model)->list: # of configs, each once
    "The configs in which layers look up their attention implementation."
    return list({id(m.config):m.config for m in model.modules() if hasattr(getattr(m, 'config', None), '_attn_implementation_internal') and uses_interface(m)}.values())

def route(
    model, # transformers model
    prefix:str # as given to `register_attention`
)->list: # (config, what it said) for `unroute`
    "Send the attention of every layer through a registered function."
    was = [(c, c._attn_implementation_internal) for c in attention_configs(model)]
    for c,impl in was:
        if impl is not None and impl not in BASES:
            raise PlasticityError(f"{type(model).__name__} uses the attention implementation {impl}: "
                                  "load it with attn_implementation='sdpa', or undo the instrument it already carries")
    for c,impl in was: c._attn_implementation_internal = f'{prefix}_{impl}' if impl else impl
    return was

def unroute(was:list):
    "Undo `route`."
    for c,impl in was: c._attn_implementation_internal = impl


@dataclass(frozen=True)
class Block:
    "The part of one parameter that belongs to a pathway."
    param:str # the parameter's full name in the model
    dim:int # axis that is indexed: 0 or 1 of a matrix, 0 of a bias
    index:torch.Tensor # LongTensor of positions along that axis

@dataclass
class Projection:
    "A linear layer of either orientation, and which heads read its output features."
    name:str # module path in the model
    transposed:bool # True for GPT-2's Conv1D, whose weight is [in, out]
    bias:bool # whether it has one
    readers:torch.Tensor=None # BoolTensor [heads, out_features]

    def rows(self, index): # blocks that make the output features `index`
        b = [Block(self.name+'.weight', int(self.transposed), index)]
        return b + ([Block(self.name+'.bias', 0, index)] if self.bias else [])
    def cols(self, index): # blocks that take the input features `index`
        return [Block(self.name+'.weight', int(not self.transposed), index)]


@dataclass
class MLP:
    "The neurons of one layer: outputs of `up`, inputs of `down`."
    width:int # number of neurons
    down:Projection # neuron n owns its input n
    up:list # the projections that make the neurons (gate and up, or up alone)
    rows:list # for each of `up` LongTensor [width, k]: the k output features that make neuron n

@dataclass
class Layer:
    "One attention layer with the MLP beside or after it."
    name:str # path of the attention module
    n_heads:int # query heads
    n_kv:int # key-value heads
    head_dim:int # size of a query
    value_dim:int # size of a head's output
    kv_index:torch.Tensor # LongTensor [n_heads]: the KV head that each query head reads
    out:Projection # output projection; head h owns its inputs h*value_dim ... (h+1)*value_dim-1
    proj:list # the projections that make queries, keys and values
    interface:bool # its attention goes through transformers' interface
    gate_at:str # 'attention' or 'projection': where a gate acts (see below)
    sinks:bool # attention sinks: part of the probability goes to no token
    mlp:MLP=None # None where there is none of the plain kind (a mixture of experts)


@patch
def head_columns(self:Layer,
    heads # one head or several
)->torch.Tensor: # LongTensor of input features of the output projection
    "Where the outputs of these heads enter the output projection."
    heads = torch.as_tensor(heads).reshape(-1)
    return (heads[:,None]*self.value_dim + torch.arange(self.value_dim)).flatten()

@patch
def blocks(self:Layer,
    heads # one head or several; KV rows belong to them when nobody else reads them
)->list: # of `Block`
    "All weights that these heads own together."
    heads = torch.as_tensor(heads).reshape(-1)
    others = torch.ones(self.n_heads, dtype=torch.bool); others[heads] = False
    found = []
    for p in self.proj:
        own = p.readers[heads].any(0) & ~p.readers[others].any(0)
        if own.any(): found += p.rows(own.nonzero().flatten())
    return found + self.out.cols(self.head_columns(heads))

@patch
def neuron_blocks(self:Layer,
    neurons # one neuron or several
)->list: # of `Block`
    "All weights that these MLP neurons own."
    if self.mlp is None: raise PlasticityError(f"{self.name} has no plain MLP beside it (a mixture of experts?): its neurons are not described")
    n = torch.as_tensor(neurons).reshape(-1)
    return [b for p,r in zip(self.mlp.up, self.mlp.rows) for b in p.rows(r[n].flatten())] + self.mlp.down.cols(n)


def is_projection(m:nn.Module)->bool: # True for nn.Linear and what derives from it (Linear4bit, Linear8bitLt) and for Conv1D
    "Whether a module is a linear layer, in either orientation."
    return isinstance(m, nn.Linear) or type(m).__name__=='Conv1D'

class Trace:
    "What a model does in one forward pass over a few tokens."
    def __init__(self, model, leaves=()): # `leaves`: modules whose outputs become gradient leaves
        self.model,self.leaves = model,{m:None for m in leaves}
        self.names = {m:n for n,m in model.named_modules()}
        self.events,self.qkv = [],{}


@patch
def attention(self:Trace, base, module, query, key, value, attention_mask=None, *args, **kwargs):
    "Record an attention call, then do it; in a pass with leaves its output is one."
    self.qkv.setdefault(module, (query, key, value))
    self.events.append(dict(kind='enter', module=module))
    out,*rest = base_attention(module, base)(module, *(t.detach() for t in (query,key,value)), attention_mask, *args, **kwargs) # flex has no backward on a CPU, and none is needed
    leaf = out.detach().flatten(2).requires_grad_(bool(self.leaves))
    self.events.append(dict(kind='attention', module=module, out=leaf, sinks=any(kwargs.get(k) is not None for k in ('s_aux','sinks'))))
    return leaf.view(out.shape).clone(),*rest

def traced_attention(base, module, *args, **kwargs): return TRACING[-1].attention(base, module, *args, **kwargs)
TRACING = [] # the trace that runs; a trace itself in the registry would keep its model alive
register_attention('plastic_trace', traced_attention)

@patch
def before(self:Trace, module, args, kwargs):
    "Record a linear layer's input."
    x = args[0] if args else next(iter(kwargs.values()))
    self.events.append(dict(kind='linear', module=module, x=x, n_in=x.shape[-1]))

@patch
def after(self:Trace, module, args, kwargs, out):
    "Record a linear layer's output size; where asked, cut the graph there."
    e = next(e for e in reversed(self.events) if e['kind']=='linear' and e['module'] is module)
    if not torch.is_tensor(out): e['kind'] = 'router'; return       # derives from nn.Linear, but gives several things
    e['n_out'] = out.shape[-1]
    if module in self.leaves:
        self.leaves[module] = out.detach().requires_grad_()
        return self.leaves[module].clone() # some models change it in place


@patch
def run(self:Trace, n_tokens=6)->Trace: # itself
    "Run the model on a few tokens; the model is left exactly as it was."
    model,hooks,training = self.model,[],[(m,m.training) for m in self.model.modules()]
    ids = (torch.arange(n_tokens, device=model.device)*7+3) % model.config.get_text_config(decoder=True).vocab_size
    was = route(model, 'plastic_trace')
    TRACING.append(self)
    try:
        for m in model.modules():
            if is_projection(m): hooks += [m.register_forward_pre_hook(self.before, with_kwargs=True), m.register_forward_hook(self.after, with_kwargs=True)]
        with torch.inference_mode(False), torch.set_grad_enabled(bool(self.leaves)): model.eval()(input_ids=ids[None], use_cache=False)
    except Exception as e:
        raise PlasticityError(f"{type(model).__name__} cannot be described: running it on plain token ids failed ({type(e).__name__}: {' '.join(str(e).split())[:150]})") from e
    finally:
        TRACING.remove(self); unroute(was)
        for m,t in training: m.training = t
        for h in hooks: h.remove()
    return self


@dataclass
class Site:
    "An attention layer as the trace saw it."
    module:nn.Module; out:nn.Module; n_heads:int; n_kv:int; head_dim:int; value_dim:int
    interface:bool; gate_at:str; sinks:bool

    @property
    def kv_index(self): return torch.arange(self.n_heads)//max(self.n_heads//self.n_kv, 1)

def interface_sites(
    trace:Trace # after `run`
)->list: # of `Site`, in the order of the model; a layer that runs several times is one site
    "Attention layers that called the interface."
    sites,ev,names = {},trace.events,trace.names
    for i,e in enumerate(ev):
        if e['kind']!='attention' or e['module'] in sites: continue
        module,(q,k,v) = e['module'],trace.qkv[e['module']]
        H,size = q.shape[1],q.shape[1]*v.shape[-1]
        stop = next((j for j in range(i+1, len(ev)) if ev[j]['kind']=='enter' and ev[j]['module'] is not module), len(ev))
        end = next((j for j in range(i+1, stop) if ev[j]['kind']=='linear' and ev[j]['n_in']==size), None)
        if end is None: raise PlasticityError(f"{type(trace.model).__name__} cannot be described: no linear layer takes the {H} heads of {names.get(module)} ({type(module).__name__}) as they are")
        same = ev[end]['x'].numel()==e['out'].numel() and torch.equal(ev[end]['x'].detach().flatten(), e['out'].flatten())
        sites[module] = Site(module, ev[end]['module'], H, k.shape[1], q.shape[-1], v.shape[-1], True, 'attention' if same else 'projection', e['sinks'])
    return list(sites.values())


def own_sites(
    trace:Trace # after `run`
)->list: # of `Site`
    "Attention layers that compute in their own code."
    H = getattr(trace.model.config.get_text_config(decoder=True), 'num_attention_heads', None)
    groups,names = {},trace.names
    attn = {n:m for m,n in names.items() if 'attention' in type(m).__name__.lower() and n}
    for i,e in enumerate(trace.events):
        if e['kind']!='linear': continue
        parts = names[e['module']].split('.')
        owner = next((p for j in range(1, len(parts)) if (p:='.'.join(parts[:j])) in attn), None)
        if owner: groups.setdefault(owner, []).append(i)
    sites = []
    for name,idx in groups.items():
        last = trace.events[idx[-1]]
        if not H or last['n_in']%H or len(idx)<2: continue
        D = last['n_in']//H
        sites.append(Site(attn[name], last['module'], H, H, D, D, False, 'projection', False))
    return sites


def influence(
    target:torch.Tensor, # [batch, units, ..., size], computed from the leaf
    leaf:torch.Tensor # [batch, tokens, features], where the graph was cut
)->torch.Tensor: # [units, features]: sum of |d target / d feature|
    "How strongly each feature influences each unit (a head, or a neuron)."
    sign = torch.randint(0, 2, target.shape, generator=torch.Generator().manual_seed(0)).to(target)*2-1
    rows = []
    for u in range(target.shape[1]):
        g = torch.autograd.grad((target[:,u]*sign[:,u]).sum(), leaf, retain_graph=True, allow_unused=True)[0] if target.requires_grad else None
        rows.append(torch.zeros(leaf.shape[-1]) if g is None else g.flatten(0,-2).abs().sum(0).float().cpu())
    return torch.stack(rows)

def reads(
    infl:torch.Tensor, # [units, features] from `influence`
    share:float=1/3 # of the strongest influence on a feature's readers, from which on a unit counts as one of them
)->torch.Tensor: # BoolTensor [units, features]
    "Which units read which feature."
    return (infl>0) & (infl >= infl.amax(0)*share)


def site_readers(
    trace:Trace, # run with the projections as leaves
    site:Site,
    leaf:torch.Tensor # output of one projection
)->torch.Tensor: # BoolTensor [n_heads, features]
    "Which heads of a layer read which output feature of a projection."
    if not site.interface:
        x = next(e for e in trace.events if e['kind']=='linear' and e['module'] is site.out)['x']
        return reads(influence(x.unflatten(-1, (site.n_heads, site.value_dim)).transpose(1,2), leaf), share=1e-6)
    q,k,v = (reads(influence(t, leaf)) for t in trace.qkv[site.module])
    return q | (k|v)[site.kv_index]


def check_columns(
    trace:Trace, # run with leaves
    site:Site
):
    "Raise unless each head arrives in its own columns of the output projection."
    if not site.interface or site.gate_at=='attention': return
    end,x = next((i,e['x']) for i,e in enumerate(trace.events) if e['kind']=='linear' and e['module'] is site.out)
    target = x.reshape(*x.shape[:2], site.n_heads, site.value_dim).transpose(1,2)
    for e in trace.events[:end]:
        if e['kind']!='attention' or e['module'] is not site.module: continue
        infl = influence(target, e['out']).unflatten(-1, (site.n_heads, -1)).sum(-1)     # [columns of head, head]
        if not (infl.diagonal()>0).all() or not torch.equal(reads(infl), torch.eye(site.n_heads, dtype=torch.bool)):
            raise PlasticityError(f"{type(trace.model).__name__} cannot be described: {trace.names[site.module]} ({type(site.module).__name__}) mixes its heads before the output projection")


def neuron_rows(
    target:torch.Tensor, # [batch, tokens, width]: what enters `down`
    leaf:torch.Tensor # output of an up projection
)->torch.Tensor: # LongTensor [width, k], or None where the pattern is not one we know
    "Which output features make each neuron, from three neurons and the two known layouts."
    W,F = target.shape[-1],leaf.shape[-1]
    n = torch.arange(W)
    ask = torch.tensor([0, 1, W-1])
    infl = influence(target[...,ask].movedim(-1,1)[...,None], leaf)
    got = [set(r.nonzero().flatten().tolist()) for r in infl > infl.amax(1, keepdim=True)/20]
    for rows in ([n[:,None]] if F==W else [torch.stack([n, n+W], 1), torch.stack([2*n, 2*n+1], 1)]):
        if got==[set(rows[i].tolist()) for i in ask]: return rows

def site_mlp(
    trace:Trace, # run with the projections as leaves
    site:Site
)->MLP: # or None
    "The plain MLP in the same block as an attention layer."
    names,name = trace.names,trace.names[site.module]
    parts = name.split('.')
    last = max((i for i,p in enumerate(parts) if p.isdigit()), default=None)
    if last is None: return None
    block = '.'.join(parts[:last+1])+'.'
    ev = [e for e in trace.events if e['kind']=='linear' and (n:=names[e['module']]).startswith(block) and not n.startswith(name+'.') and e['module'] is not site.out]
    hidden,found = next(e for e in trace.events if e['kind']=='linear' and e['module'] is site.out)['n_out'],[]
    for down in ev:
        ups = [e for e in ev if e is not down and e['n_out'] in (down['n_in'], 2*down['n_in']) and e['n_in']==hidden and 'leaf' in e]
        rows = [neuron_rows(down['x'], e['leaf']) for e in ups]
        ups,rows = zip(*[(u,r) for u,r in zip(ups,rows) if r is not None]) if any(r is not None for r in rows) else ((),())
        if down['n_out']==hidden and 0<len(ups)<=2: found.append(MLP(down['n_in'], trace.projection(down['module']), [trace.projection(u['module']) for u in ups], list(rows)))
    return found[0] if len(found)==1 and not any('expert' in e for e in map(lambda e: names[e['module']], ev)) else None


@patch
def projection(self:Trace,
    module:nn.Module, # a linear layer of the model
    readers:torch.Tensor=None # BoolTensor [heads, out_features]
)->Projection: # its description
    "Describe a linear layer."
    return Projection(self.names[module], type(module).__name__=='Conv1D', module.bias is not None, readers)


class Anatomy:
    "Where the heads and neurons of a decoder are."
    def __init__(self, model): # a transformers decoder, of any kind that can be described
        trace = Trace(model).run()
        sites = interface_sites(trace) or own_sites(trace)
        if not sites:
            raise PlasticityError(f"{type(model).__name__} cannot be described: no attention layer was found in it ({no_attention_reason(model)})")
        linear = [e['module'] for e in trace.events if e['kind']=='linear']
        second = Trace(model, dict.fromkeys(linear)).run()
        for e in second.events:
            if e['kind']=='linear' and second.leaves[e['module']] is not None: e['leaf'] = second.leaves[e['module']]
        self.model_name,self._same = type(model).__name__,{}
        with torch.inference_mode(False), torch.enable_grad(): self.layers = [self._layer(second, s) for s in sites]


def no_attention_reason(model)->str: # names the module
    "What a model without a recognisable attention layer does instead."
    kinds = {type(m).__name__ for m in model.modules() if any(k in type(m).__name__.lower() for k in ('mixer', 'attention', 'mamba', 'rwkv', 'block'))}
    return 'its layers are '+', '.join(sorted(kinds)[:4]) if kinds else 'no module of it mixes tokens'

@patch
def _layer(self:Anatomy, trace, site):
    check_columns(trace, site)
    name = trace.names[site.module]
    leaves = [e for e in trace.events if e['kind']=='linear' and 'leaf' in e and trace.names[e['module']].startswith(name+'.') and e['module'] is not site.out]
    rel = tuple((trace.names[e['module']][len(name):], e['n_out']) for e in leaves)
    key = (type(site.module), site.n_heads, site.n_kv, site.head_dim, site.value_dim, rel)
    if key not in self._same: self._same[key] = [site_readers(trace, site, e['leaf']) for e in leaves]
    proj = [trace.projection(e['module'], r) for e,r in zip(leaves, self._same[key]) if r.any()]
    if not site.interface and not all(any((p.readers[h] & (p.readers.sum(0)==1)).any() for p in proj) for h in range(site.n_heads)):
        raise PlasticityError(f"{self.model_name} cannot be described: not every head of {name} ({type(site.module).__name__}) has rows of its own")
    n_kv,kv_index = site.n_kv,site.kv_index
    if not site.interface and proj:
        sets = torch.unique(torch.cat([p.readers for p in proj], 1), dim=1).T
        shared = [s for s in sets if s.sum()>1]
        if shared: n_kv,kv_index = len(shared),torch.stack(shared).int().argmax(0)
    return Layer(name, site.n_heads, n_kv, site.head_dim, site.value_dim, kv_index, trace.projection(site.out),
                 proj, site.interface, site.gate_at, site.sinks, site_mlp(trace, site))


@patch(as_prop=True)
def n_layers(self:Anatomy)->int: return len(self.layers) # attention layers; a hybrid has others besides

@patch(as_prop=True)
def heads(self:Anatomy)->list: return [l.n_heads for l in self.layers] # query heads of each layer

@patch(as_prop=True)
def kv_heads(self:Anatomy)->list: return [l.n_kv for l in self.layers] # KV heads of each layer

@patch(as_prop=True)
def exists(self:Anatomy)->torch.Tensor: # BoolTensor [layers, most heads]: False where a layer has fewer heads
    return torch.arange(max(self.heads)) < torch.tensor(self.heads)[:,None]

@patch
def table(self:Anatomy): # DataFrame, a line per layer
    "The anatomy as a table."
    import pandas as pd
    return pd.DataFrame([dict(layer=l.name, heads=l.n_heads, kv_heads=l.n_kv, head_dim=l.head_dim, reads=', '.join(p.name.split('.')[-1] for p in l.proj),
        writes=l.out.name.split('.')[-1], gate_at=l.gate_at, neurons=l.mlp.width if l.mlp else None) for l in self.layers])

@patch
def __repr__(self:Anatomy):
    h = sorted(set(self.heads)); k = sorted(set(self.kv_heads))
    return f"{self.model_name}: {self.n_layers} attention layers, {'/'.join(map(str,h))} heads on {'/'.join(map(str,k))} KV heads"

@patch
def _repr_html_(self:Anatomy): return f"<p>{self!r}</p>" + self.table().to_html(index=False, na_rep='')
