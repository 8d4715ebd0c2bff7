//! What sets a decoder apart among others, in words: read off the model as it runs, not off its description.

use std::sync::Arc;

use super::transformer::{Block, Transformer};
use crate::ops::attention::Attention;

impl Transformer {
    /// The features of its positions, its attention, its norms and its MLPs, in this order.
    pub(super) fn describe(&self) -> Vec<&'static str> {
        let attentions: Vec<&Attention> =
            self.blocks.iter().map(|block| &block.attention).collect();
        let mut features = vec![self.positions(&attentions)];
        features.extend(self.heads(&attentions));
        features.extend(windows(&attentions));
        let caps = [
            (attentions.iter().any(|attention| attention.cap.is_some()), "a soft cap on scores"),
            (self.unembedding.cap.is_some(), "a soft cap on logits"),
        ];
        features.extend(caps.iter().filter(|(has, _)| *has).map(|(_, name)| *name));
        features.push(self.norms());
        let is_gated =
            |block: &Block| block.mlp.as_ref().is_some_and(|mlp| mlp.activation.is_gated());
        let rest = [
            (self.is_parallel, "attention and MLP side by side"),
            (self.blocks.iter().any(is_gated), "gated MLPs"),
            (self.embedding.scale != 1.0, "scaled embeddings"),
        ];
        features.extend(rest.iter().filter(|(has, _)| *has).map(|(_, name)| *name));
        features
    }

    fn positions(&self, attentions: &[&Attention]) -> &'static str {
        let mut rotaries = attentions.iter().filter_map(|attention| {
            attention.rotary.as_ref().map(|rotary| (rotary, attention.d_head))
        });
        match rotaries.next() {
            None if self.embedding.positions.is_some() => "learned positions",
            None => "no positions",
            Some((rotary, d_head)) if rotary.width() < d_head => {
                "rotary positions on a part of each head"
            }
            Some((first, _)) => match rotaries.any(|(rotary, _)| !Arc::ptr_eq(rotary, first)) {
                true => "rotary positions, of other frequencies where there is a window",
                false => "rotary positions",
            },
        }
    }

    fn heads(&self, attentions: &[&Attention]) -> Vec<&'static str> {
        let shares = attentions.iter().any(|attention| attention.kv_heads < attention.heads);
        let has_bias = self.blocks.iter().any(|block| block.attention_in.bias.is_some());
        let norms = attentions.iter().find_map(|attention| attention.norms.as_ref());
        let norms = norms.map(|norms| match norms.is_per_head {
            true => "norms on each head's queries and keys",
            false => "norms on all heads' queries and keys together",
        });
        let heads = [
            shares.then_some("grouped-query attention"),
            has_bias.then_some("biases on queries, keys and values"),
            norms,
        ];
        heads.into_iter().flatten().collect()
    }

    /// The kind of the norms of sub-layers, and where they stand.
    fn norms(&self) -> &'static str {
        let before = self.blocks.iter().find_map(|block| block.attention_in.norm.as_ref());
        let has_after = self.blocks.iter().any(|block| block.attention_out.norm.is_some());
        match (before, has_after) {
            (Some(norm), _) if norm.bias.is_some() => "layer norms",
            (Some(_), true) => "RMS norms before and after sub-layers",
            (Some(_), false) => "RMS norms",
            (None, true) => "RMS norms after sub-layers",
            (None, false) => "no norms",
        }
    }
}

fn windows(attentions: &[&Attention]) -> Option<&'static str> {
    match attentions.iter().filter(|attention| attention.window.is_some()).count() {
        0 => None,
        count if count == attentions.len() => Some("sliding windows"),
        _ => Some("sliding windows in some layers"),
    }
}
