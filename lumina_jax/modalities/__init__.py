"""What a picture, a clip, the views of an object and a sound are."""
