//! What a discovery leaves: scores and circuits in files that say where they came from, drawings, tables
//! and the files of other tools.

pub mod circuit_file;
pub mod drawing;
pub mod dynamics;
pub mod eap_ig;
pub mod events;
pub mod example_score_file;
pub mod mib;
pub mod provenance;
mod score_file;
pub mod table;
