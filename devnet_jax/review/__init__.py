"""The labelling loop: pictures are looked at and labelled on a page, and a detector learns."""
