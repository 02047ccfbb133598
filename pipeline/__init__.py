"""The pipeline: from a labelled image set to measured files for a phone."""
