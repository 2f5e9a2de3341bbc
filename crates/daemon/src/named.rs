//! Names, which are unique in a project.

use std::fmt;

use guise_api::{DEFAULT_PROJECT, Instance};

/// A name with its project.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub project: String,
    pub name: String,
}

impl Named {
    pub fn new(project: impl Into<String>, name: impl Into<String>) -> Named {
        Named { project: project.into(), name: name.into() }
    }

    /// The named network that an instance is plugged into.
    pub fn network_of(instance: &Instance) -> Option<Named> {
        Some(Named::new(&instance.project, instance.spec.join.as_ref()?))
    }

    pub fn is_in_default_project(&self) -> bool {
        self.project == DEFAULT_PROJECT
    }
}

/// `NAME`, and outside of the default project `PROJECT/NAME`. Names have no slashes, so that
/// this tells all names apart.
impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_in_default_project() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.project, self.name)
    }
}
