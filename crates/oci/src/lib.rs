//! Strict, limited parsing of OCI and Docker documents.
