//! The analyses that an experiment lists, before and after tuning, and what they leave in its run folder. What
//! is computed is [`crate::analysis`]'s.

use serde::Deserialize;

use super::Runner;
use super::folder::RunFolder;
use crate::analysis::{Analysis, Findings, HeatMap, Name, Request};
use crate::evaluation::task::Split;
use crate::graph::circuit::Circuit;
use crate::graph::{Input, Port};
use crate::run::experiment::Experiment;
use crate::{Error, Result, files, refuse};

/// The heads that a run's paths lead to, by the size of their direct effects.
const STRONGEST: usize = 3;

impl Runner<'_> {
    /// How nodes are analysed, on the first of the task's test examples that the ablation fits.
    ///
    /// # Errors
    /// If there are none, or the metric doesn't fit them.
    pub fn analysis(&self) -> Result<Analysis<'_>> {
        let Experiment { faithfulness, discovery, analysis_examples, .. } = self.experiment;
        let ablation = faithfulness.as_ref().and_then(|settings| settings.ablation);
        let ablation = ablation.unwrap_or(discovery.ablation);
        let examples = self.data.fitting(self.split(Split::Test)?.examples(), ablation);
        let examples = &examples[..examples.len().min(*analysis_examples)];
        if examples.is_empty() {
            refuse!("there are no test examples to look at; analysis_examples must be at least 1");
        }
        self.check_metric(examples)?;
        Ok(Analysis {
            model: self.model,
            metric: &*self.plugins.metric,
            examples,
            ablation,
            batch_size: self.experiment.evaluation_batch_size,
            report: self.report,
            peers: self.peers,
        })
    }

    /// Refuses analyses that can't be done on the examples.
    pub(super) fn check_analyses(&self) -> Result<()> {
        let analysis = self.analysis()?;
        let why = self.plugins.task.why_no_counterfactual();
        self.experiment.analyses.iter().try_for_each(|&name| analysis.check(name, why))
    }

    /// Findings of an analysis of one model or several as one heat map.
    pub fn heat_map(&self, analysis: &Analysis, found: &[(&str, Findings)]) -> HeatMap {
        let provenance = self.provenance(analysis.examples);
        let what = found.first().map(|(_, findings)| findings.title()).unwrap_or_default();
        let panels = |findings: &Findings| findings.panels(self.model.graph());
        HeatMap {
            title: format!("{}: {what}", provenance.task),
            subtitle: format!(
                "{}, {} examples; layers down, heads across; above 0 blue, below red",
                provenance.model_path,
                analysis.examples.len()
            ),
            lines: found.iter().map(|(name, of)| ((*name).to_owned(), panels(of))).collect(),
        }
    }

    /// Runs the experiment's analyses and writes what they find.
    pub(super) fn analyse(&self, folder: &RunFolder, when: &str) -> Result<()> {
        if self.experiment.analyses.is_empty() {
            return Ok(());
        }
        let analysis = self.analysis()?;
        let own = folder.folder(&format!("analysis-{when}"))?;
        for &name in &self.experiment.analyses {
            let Some(request) = self.request(name, folder, when)? else {
                ::log::warn!("there is no circuit {when} tuning whose nodes have roles");
                continue;
            };
            let findings = match analysis.run(&request) {
                // The tuned model is there to be looked at.
                Err(error @ Error::NotFinite(_)) if when == "after" => {
                    ::log::warn!("analysis `{}` {when} tuning: {error}", name.name());
                    continue;
                }
                findings => findings?,
            };
            if !files::writes() {
                continue;
            }
            let file = |extension: &str| own.path(&format!("{}.{extension}", name.name()));
            files::write_json(&file("json"), &findings)?;
            files::write_atomically(&file("csv"), findings.table().csv("").as_bytes())?;
            let map = self.heat_map(&analysis, &[("", findings)]);
            files::write_atomically(&file("svg"), map.svg().as_bytes())?;
        }
        Ok(())
    }

    /// What is asked for by a name; none where it is of a circuit that wasn't found. Paths lead to the same
    /// readers after tuning as before.
    fn request(&self, name: Name, folder: &RunFolder, when: &str) -> Result<Option<Request>> {
        #[derive(Deserialize)]
        struct Before {
            to: Vec<Input>,
        }
        Ok(Some(match name {
            Name::Logits => Request::Logits,
            Name::Attention => Request::Attention { heads: Vec::new(), from: None, patterns: 0 },
            Name::Paths if when == "after" => {
                let file = folder.path("analysis-before/paths.json");
                Request::Paths { from: Vec::new(), to: files::read_json::<Before>(&file)?.to }
            }
            Name::Paths => {
                Request::PathsToStrongest { from: Vec::new(), count: STRONGEST, port: Port::Query }
            }
            Name::Roles => {
                let file = folder.path(&format!("circuit-{when}.json"));
                if !file.exists() {
                    return Ok(None);
                }
                let graph = self.model.graph().subset(&self.experiment.discovery.nodes);
                Request::Roles(Circuit::load(&file, self.model, &graph)?)
            }
        }))
    }
}
