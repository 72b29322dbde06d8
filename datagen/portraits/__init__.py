"""From photos to aligned portraits with landmarks, label maps, hair mattes and regions."""
