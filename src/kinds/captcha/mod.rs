//! Captcha events: served and solved captchas, counted by site and UTC day.
