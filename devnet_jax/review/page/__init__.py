"""The page of the review: one template, a style sheet and ES modules, served as they are."""
