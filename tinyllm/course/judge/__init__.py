"""The judge: it decides about answers that it only meets through a door, with numbers and arrays going in and out."""
