"""What each verb does: one module with a function `run`, imported when its verb is used."""
